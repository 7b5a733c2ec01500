# From a fresh clone: `make demo` and `make test`. Each sets up what it needs (scripts/bootstrap.sh).
# PYTHON=python3.12 chooses the interpreter, JOBS=4 the number of compilers at a time.
VENV   := .venv/bin
BUILD  := build/editable
JOBS   ?= $(shell nproc)
export PATH := $(CURDIR)/$(VENV):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

SOURCES := $(shell find CMakeLists.txt pyproject.toml cmake include src python/bindings tests/cpp examples/cpp benchmarks/cpp -type f)
CXX_FILES = $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cpp' '*.cc' '*.cu')

.PHONY: help build demo test test-cpp test-python lint format bench check-cuda-wheel check-torch-version gpu-check gpu-bench clean
help:
	@echo "make demo     train, harden and swap on real data, in Python and C++ (two minutes)"
	@echo "make test     all tests, C++ and Python"
	@echo "make build    the package in .venv, nothing else"
	@echo "make bench    benchmarks; JSON into benchmarks/results, tables into docs/benchmarks.md"
	@echo "make check-cuda-wheel   the wheel beside a CUDA build of PyTorch (5 GB; needs nvcc, no GPU)"
	@echo "make check-torch-version TORCH=2.12   every test beside another PyTorch (5 GB and more)"
	@echo "make gpu-check  the proof of the CUDA kernels on a GPU, or STEPS=\"python cpp\" of it (docs/gpu.md)"
	@echo "make gpu-bench  their speed on a GPU; JSON into benchmarks/results, tables into docs/benchmarks.md"
	@echo "make lint     formatting and static checks;  make format  applies them"

.venv/.ready: scripts/bootstrap.sh scripts/test_packages.txt
	./scripts/bootstrap.sh

# One build serves Python and C++: the editable install leaves the C++ tests and examples in $(BUILD).
$(BUILD)/.installed: .venv/.ready $(SOURCES)
	$(VENV)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e . \
	  --config-settings=build-dir=$(BUILD) \
	  --config-settings=cmake.define.LAMBDA_GELU_WERROR=ON \
	  --config-settings=cmake.define.LAMBDA_GELU_BUILD_TESTS=ON \
	  --config-settings=cmake.define.LAMBDA_GELU_BUILD_EXAMPLES=ON \
	  --config-settings=cmake.define.LAMBDA_GELU_BUILD_BENCHMARKS=ON
	@touch $@
build: $(BUILD)/.installed

demo: build
	$(VENV)/python examples/python/digits.py --export-digits build/digits.csv --output-dir demo_output
	$(BUILD)/examples/cpp/train --digits build/digits.csv

test: test-cpp test-python
test-cpp: build
	ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j $(JOBS)
test-python: build
	$(VENV)/python -m pytest -q

lint: .venv/.ready
	$(VENV)/clang-format --dry-run -Werror $(CXX_FILES)
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
format: .venv/.ready
	$(VENV)/clang-format -i $(CXX_FILES)
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

bench: build
	$(VENV)/python benchmarks/bench_kernels.py $(BUILD)/benchmarks/cpp/bench_kernels
	$(VENV)/python benchmarks/bench_op.py --aten $(BUILD)/benchmarks/cpp/bench_aten
	$(VENV)/python benchmarks/bench_compile.py
	$(VENV)/python benchmarks/bench_observe.py
	$(VENV)/python benchmarks/bench_paper.py
	$(VENV)/python benchmarks/accuracy.py $(BUILD)/tests/cpp/kernels/kernels_tests
	$(VENV)/python benchmarks/machine_code.py --json $(BUILD)/src/liblambda_gelu.so
	$(VENV)/python benchmarks/report.py

check-cuda-wheel: .venv/.ready
	./scripts/check_cuda_wheel.sh

check-torch-version:
	./scripts/check_torch_version.sh $(TORCH)

# STEPS="python sanitizer" runs these alone and writes no file. The script asks for a GPU before it builds anything.
gpu-check:
	@$(or $(PYTHON),python3) scripts/gpu_check.py --jobs $(JOBS) $(STEPS)
gpu-bench:
	@$(or $(PYTHON),python3) scripts/gpu_check.py --jobs $(JOBS) build
	$(VENV)/python benchmarks/bench_cuda.py
	$(VENV)/python benchmarks/report.py

clean:
	rm -rf build .venv demo_output
