# Shortcuts for common commands; the README lists them without make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PRECISION := $(shell grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo && echo bf16-mixed || echo 32-true)

.PHONY: quickstart test test-slow test-all lint types check constraints clean

quickstart: $(READY)  ## train patch-wise IPC on the bundled photographs and test it beside a global code and PCA
	$(BIN)/python cli.py fit --config configs/experiments/photos_patch_ipc.yaml --trainer.precision $(PRECISION)
	$(BIN)/python cli.py test --config configs/experiments/photos_patch_ipc.yaml --ckpt_path last

test: $(READY)  ## run the default tests; five minutes on two idle cores
	$(BIN)/python -m pytest -n auto

test-slow: $(READY)  ## run only the slow tests
	$(BIN)/python -m pytest -n auto -m slow

test-all: $(READY)  ## run all tests
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(READY)  ## check types
	$(BIN)/mypy

check: test lint types  ## run the default tests and all checks

# Without the CUDA libraries, which every build of torch pins for itself and which differ between builds
UNPINNED := cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 \
	cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

constraints:  ## pin the packages that the requirements require, for all supported Pythons and systems; requires uv
	grep --no-filename --invert-match '^-' requirements-runtime.txt requirements.txt | UV_CUSTOM_COMPILE_COMMAND="make constraints" \
		uv pip compile --quiet --universal --python-version 3.11 --no-annotate $(addprefix --no-emit-package=,$(UNPINNED)) \
		--output-file constraints.txt - > /dev/null

clean:  ## remove the environment and caches; runs are kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt requirements-runtime.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $(READY)
