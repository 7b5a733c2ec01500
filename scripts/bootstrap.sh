#!/bin/sh
# Makes .venv with everything the build and the tests need; safe to run again.
#   PYTHON=python3.12            the interpreter to use
#   TORCH_SPEC="torch==2.12.*"   the PyTorch to install where none is present
#   TORCH_PIP_ARGS="..."         more arguments for that installation
# Without a network it uses what the machine has: a Python with torch, and cmake, ninja and scikit-build-core in it or on
# PATH; libraries from LAMBDA_GELU_DEPENDENCIES (cmake/Dependencies.cmake). It says what is missing and what that costs.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
say() { printf 'bootstrap: %s\n' "$*" >&2; }

# --- system packages: what is missing comes from apt where that is possible, else CMake fetches the libraries
if command -v apt-get >/dev/null 2>&1; then
  missing=""
  command -v g++ >/dev/null || missing="$missing g++"
  command -v git >/dev/null || missing="$missing git"
  command -v ccache >/dev/null || missing="$missing ccache"
  command -v "$PYTHON" >/dev/null || missing="$missing python3"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
  [ -e "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])' 2>/dev/null)/Python.h" ] ||
    missing="$missing python3-dev"
  for package in libgtest-dev libfmt-dev libhwy-dev libbenchmark-dev; do
    dpkg -s $package >/dev/null 2>&1 || missing="$missing $package"
  done
  if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo"; else sudo="none"; fi
    if [ "$sudo" = none ]; then
      say "no root: not installed:$missing (CMake downloads the libraries instead)"
    else
      say "apt-get install$missing"
      export DEBIAN_FRONTEND=noninteractive
      { $sudo apt-get install -y -qq $missing || { $sudo apt-get update -qq && $sudo apt-get install -y -qq $missing; }; } \
        >build-apt.log 2>&1 && rm -f build-apt.log ||
        say "apt-get failed (see build-apt.log); CMake downloads the libraries instead"
    fi
  fi
fi

# --- the environment: a PyTorch that is already present is used, not replaced
has_torch() { "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; }
if [ ! -x .venv/bin/python ]; then
  site=""
  if has_torch "$PYTHON"; then site=--system-site-packages; fi
  # Without ensurepip (Debian's python3-venv), the pip of the system serves.
  "$PYTHON" -m venv $site .venv 2>/dev/null || "$PYTHON" -m venv --clear --without-pip $site .venv
  # A venv made by the Python of a venv sees the packages of the interpreter below both, not those in between.
  if [ -n "$site" ] && ! has_torch .venv/bin/python; then
    "$PYTHON" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
      >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages_of_python.pth"
  fi
fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || { say "no pip for $PYTHON: install python3-venv"; exit 1; }
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
if ! has_torch .venv/bin/python; then
  say "installing PyTorch"
  spec=${TORCH_SPEC:-torch==2.13.0}
  # The CPU build first (0.2 GB instead of 5 GB): a local wheel, then PyTorch's own index, then whatever pip finds.
  pip install ${TORCH_PIP_ARGS:-} "$spec+cpu" 2>/dev/null ||
    pip install ${TORCH_PIP_ARGS:-} --index-url https://download.pytorch.org/whl/cpu "$spec" 2>/dev/null ||
    pip install ${TORCH_PIP_ARGS:-} "$spec" ||
    { say "no PyTorch, and none could be installed: PYTHON=<a Python that has torch> $0"; exit 1; }
fi

# --- Python tools: only what is missing is installed, so that a machine without a network may have them already
missing_of() {
  .venv/bin/python - "$@" <<'END'
import importlib.metadata
import sys

from pip._vendor.packaging.requirements import Requirement

for text in sys.argv[1:]:
    requirement = Requirement(text)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if not version or not requirement.specifier.contains(version, prereleases=True):
        print(text)
END
}
# What the tests use. timm is not among it: it needs torchvision, which has to match the build of torch.
tools="scikit-build-core>=0.11 ruff clang-format==19.1.7 $(cat scripts/test_packages.txt)"
command -v ninja >/dev/null || tools="$tools ninja"
cmake --version 2>/dev/null | awk 'NR == 1 { split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 25)) }' ||
  tools="$tools cmake"
# None of them may replace the torch that the package is built against.
.venv/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >.venv/constraints.txt
missing=$(missing_of $tools)
if [ -n "$missing" ]; then
  say "installing Python tools:" $missing
  if pip install -c .venv/constraints.txt $missing 2>build-pip.log; then
    rm -f build-pip.log
  else
    for tool in $missing; do
      pip install -c .venv/constraints.txt --retries 0 "$tool" 2>>build-pip.log || true
    done
  fi
fi
for tool in $(missing_of $tools); do
  case $tool in
    scikit-build-core* | cmake) say "$tool is missing and could not be installed (see build-pip.log): nothing can be built"; exit 1 ;;
    ninja) cost="make builds instead" ;;
    pytest) cost="no Python tests" ;;
    numpy | hypothesis | mpmath | transformers | lightning | accelerate | safetensors | tensorboard | onnx*) cost="the tests that import it are skipped" ;;
    ray*) cost="the paper's experiments run one after the other; the test of many at a time is skipped" ;;
    scikit-learn | matplotlib | tqdm) cost="no make demo; its tests are skipped" ;;
    *) cost="no make lint" ;;
  esac
  say "$tool is missing and could not be installed (see build-pip.log): $cost"
done

# --- counting the machine instructions of the CUDA kernels needs two tools that not every nvcc comes with
.venv/bin/python scripts/fetch_cuobjdump.py || say "no cuobjdump: the machine code of the CUDA kernels is not counted"
touch .venv/.ready
