#!/bin/sh
# One wheel serves the CPU and the CUDA build of a PyTorch version. Builds it against the torch of .venv, installs it
# beside the CUDA build of the same version in a new environment (build/cuda-wheel, about 5 GB), and runs the Python
# tests there; they need no GPU. By hand rather than in CI: `make check-cuda-wheel`.
#   TORCH_PIP_ARGS="..."   more arguments for the installation of torch
set -eu
cd "$(dirname "$0")/.."
folder=build/cuda-wheel
python=$folder/venv/bin/python
pip="-m pip --disable-pip-version-check -q"
say() { printf 'check-cuda-wheel: %s\n' "$*" >&2; }

version=$(.venv/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')
say "building a wheel against $(.venv/bin/python -c 'import torch; print("torch", torch.__version__)')"
rm -rf $folder/dist
.venv/bin/python $pip wheel --no-build-isolation --no-deps --wheel-dir $folder/dist . \
  --config-settings=build-dir=$folder/build \
  --config-settings=cmake.define.LAMBDA_GELU_CUDA=ON \
  --config-settings=cmake.define.LAMBDA_GELU_WERROR=ON

[ -x $python ] || .venv/bin/python -m venv $folder/venv
say "installing torch $version for CUDA"
# "===" leaves out 2.13.0+cpu, which "==" would take.
$python $pip install ${TORCH_PIP_ARGS:-} "torch===$version" hypothesis mpmath numpy pytest
$python $pip install --no-deps --force-reinstall $folder/dist/lambda_gelu-*.whl

cd $folder # away from the source tree: the package must be the installed one
venv/bin/python - <<'END'
import pathlib

import lambda_gelu
import torch

package = pathlib.Path(lambda_gelu.__file__).parent
assert "site-packages" in package.parts, f"lambda_gelu is not the installed one but {package}"
assert torch.version.cuda, f"torch {torch.__version__} is no CUDA build"
info = lambda_gelu.build_info()
assert info["cuda_archs"], "the wheel names no CUDA architectures"
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lambda_gelu::")]
operators = [name for name in operators if has_kernel(name, "CPU")]
assert operators, "no operator has a kernel for the CPU"
for name in operators:
    assert has_kernel(name, "CUDA"), f"{name} has no kernel for CUDA"
print(f"built against torch {info['torch_version']}, running beside {torch.__version__}")
print("CUDA kernels registered:", ", ".join(operators), "for", ", ".join(info["cuda_archs"]))
END
venv/bin/python -m pytest -q -c ../../pyproject.toml --rootdir ../.. ../../tests/python
say "passed"
