#!/usr/bin/env bash
# Makes the environment for llamacpp.py: benchmarks/peers/.venv-llamacpp, or the directory named
# as $1.
#   PYTHON=python3.11     the interpreter to build it with
#   JOBS=2                compilers at a time (default: one per core)
# Needs a C++ compiler. The sources are those inside llama-cpp-python's source distribution; what is
# built is llama.cpp's own llama-batched-bench, for this processor. Several minutes; running it again
# is harmless.
set -euo pipefail

version=0.3.36
gguf=0.19.0
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/.venv-llamacpp}
python=${PYTHON:-python3}

test -x "$venv/bin/python" || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -q "gguf==$gguf" cmake ninja

sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
pip download -q --no-deps --no-binary llama-cpp-python -d "$sources" "llama-cpp-python==$version"
tar -xzf "$sources"/*.tar.gz -C "$sources" --strip-components=1
# shellcheck disable=SC2086  JOBS is one number or nothing
"$venv/bin/cmake" -S "$sources/vendor/llama.cpp" -B "$sources/build" -G Ninja \
  -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
  -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF > "$sources/cmake.log" ||
  { cat "$sources/cmake.log" >&2; exit 1; }
"$venv/bin/ninja" -C "$sources/build" ${JOBS:+-j "$JOBS"} llama-batched-bench > "$sources/ninja.log" ||
  { tail -n 40 "$sources/ninja.log" >&2; exit 1; }
install -m 755 "$sources/build/bin/llama-batched-bench" "$venv/bin/"
echo "$version" > "$venv/llama-cpp-python.version"
echo "llama.cpp of llama-cpp-python $version is ready"
