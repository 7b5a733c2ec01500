#!/bin/sh
# Builds the package beside another version of PyTorch, in an environment of its own (build/torch-<version>, 5 GB and
# more: PyPI's builds bring CUDA along), and runs every test there, C++ and Python. By hand rather than in CI:
# `make check-torch-version TORCH=2.12`. Writes docs/support/<version>.json, from which README's table is made.
#   TORCH_PIP_ARGS="..."   more arguments for the installation of torch
#   JOBS=4                 compilers at a time
set -eu
version=${1:?usage: check_torch_version.sh <version of torch, for example 2.12>}
cd "$(dirname "$0")/.."
folder=$PWD/build/torch-$version
venv=$folder/venv
pip="$venv/bin/python -m pip --disable-pip-version-check -q"
say() { printf 'check-torch-version: %s\n' "$*" >&2; }

if [ ! -x "$venv/bin/python" ]; then
  say "installing torch $version"
  "${PYTHON:-python3}" -m venv "$venv"
  $pip install ${TORCH_PIP_ARGS:-} "torch==$version.*"
fi
"$venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch").partition("+")[0])' \
  >"$folder/constraints.txt"
$pip install -c "$folder/constraints.txt" "scikit-build-core>=0.11" ninja -r scripts/test_packages.txt timm

# The kernels of CUDA know no torch, and compiling them takes longer than all the rest.
say "building beside $(cat "$folder/constraints.txt")"
export PATH="$venv/bin:$PATH" CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-$(nproc)}"
$pip install --no-build-isolation --no-deps -e . \
  --config-settings=build-dir="$folder/build" \
  --config-settings=cmake.define.LAMBDA_GELU_CUDA=OFF \
  --config-settings=cmake.define.LAMBDA_GELU_WERROR=ON \
  --config-settings=cmake.define.LAMBDA_GELU_BUILD_TESTS=ON \
  --config-settings=cmake.define.LAMBDA_GELU_BUILD_EXAMPLES=ON
"$venv/bin/python" scripts/support_table.py run --build-dir "$folder/build"
