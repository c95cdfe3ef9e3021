#!/usr/bin/env bash
# Builds ChunkAttention's own CPU kernel for `foreword bench attention`: a Python module below
# benchmarks/peers/chunk_attention/build, or the directory named as $1 (then set
# FOREWORD_CHUNK_ATTENTION to it).
#   PYTHON=.venv/bin/python          the interpreter that will run the benchmark; it has torch
#   CHUNK_ATTENTION_SOURCE=address   where to clone from, such as a copy on this machine
# Needs git, a C++ compiler and about 1 GB of disk for MKL's static libraries, which are deleted
# again. Of the project only the kernel and its bindings are compiled, unchanged, as its README says:
# MKL linked statically and sequential. Its log goes nowhere: see quiet/. Running it again is harmless.
set -euo pipefail

commit=dde08ce
source=${CHUNK_ATTENTION_SOURCE:-https://github.com/microsoft/chunk-attention}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "${1:-$here/build}"
build=$(cd "${1:-$here/build}" && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git clone -q "$source" "$scratch/source"
git -C "$scratch/source" checkout -q "$commit"
# Not installed: `pip install --target` leaves out the very libraries.
"$python" -m pip --disable-pip-version-check download -q --no-deps -d "$scratch/wheels" \
  mkl-static mkl-include
"$python" - "$scratch/mkl" "$scratch"/wheels/*.whl <<'PY'
import sys
import zipfile
from pathlib import PurePath

LIBRARIES = {f"libmkl_{part}.a" for part in ("intel_lp64", "sequential", "core")}
for path in sys.argv[2:]:
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if name.endswith(".h") or PurePath(name).name in LIBRARIES:
                wheel.extract(name, sys.argv[1])
PY

code=$scratch/source/cpp/chunk_attn
include=$(dirname "$(find "$scratch/mkl" -name mkl_cblas.h -print -quit)")
libraries=$(dirname "$(find "$scratch/mkl" -name libmkl_core.a -print -quit)")
test -f "$include/mkl_cblas.h" && test -f "$libraries/libmkl_core.a"
torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
openmp=$(find "$torch/lib" "$(dirname "$torch")/torch.libs" -name 'libgomp*.so*' -print -quit 2>/dev/null || true)
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

# torch's own OpenMP library, where it brings one: two of them would keep two sets of threads spinning.
"${CXX:-g++}" -std=c++20 -O3 -DNDEBUG -march=native -fopenmp -fPIC -shared -w \
  -DUSE_MKL=1 -DTORCH_EXTENSION_NAME=chunk_attn_c -DTORCH_API_INCLUDE_EXTENSION_H \
  -I"$here/quiet" -I"$code" -isystem "$include" -isystem "$headers" \
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
  "$code"/{attention,chunk,chunk_allocator,kernel_cpu_mkl,str_utils,task_executor,python_exports}.cpp \
  "$here/quiet/logger.cpp" \
  -Wl,--start-group "$libraries"/libmkl_{intel_lp64,sequential,core}.a -Wl,--end-group \
  -Wl,--exclude-libs,ALL -Wl,-Bsymbolic \
  -L"$torch/lib" -Wl,-rpath,"$torch/lib" \
  ${openmp:+"$openmp"} -ltorch -ltorch_cpu -ltorch_python -lc10 -lpthread -lm -ldl \
  -o "$build/chunk_attn_c$suffix"

"$python" -c 'import sys, torch; sys.path.insert(0, sys.argv[1]); import chunk_attn_c' "$build"
printf '%s\n' "$commit" > "$build/commit"
echo "ChunkAttention's CPU kernel is ready in $build"
