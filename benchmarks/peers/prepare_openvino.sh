#!/usr/bin/env bash
# Makes the environment for openvino_batching.py: benchmarks/peers/.venv-openvino, or the directory
# named as $1.
#   PYTHON=python3.11     the interpreter to build it with
#   TORCH_ARGS="..."      extra pip arguments for torch alone, such as a CPU-only package index
# torch is there to convert models, not to run them; it comes first, so that what asks for it finds
# the build that was wanted. A few gigabytes on disk; running it again is harmless.
set -euo pipefail

genai=2026.4.1.0
optimum=2.2.0
torch=2.13.0
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/.venv-openvino}
python=${PYTHON:-python3}

test -x "$venv/bin/python" || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
echo "torch==$torch" > "$constraints"
pip install -q "torch==$torch" ${TORCH_ARGS:-}
pip install -q -c "$constraints" "openvino-genai==$genai" "optimum-intel[openvino]==$optimum"
pip uninstall -q -y torchvision # built for another torch, and nothing here looks at pictures
"$venv/bin/python" -c 'import openvino_genai as g; print("OpenVINO GenAI", g.__version__, "is ready")'
