# Shortcuts for common commands; the README lists them without make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PRECISION := $(shell grep -qsE 'amx_bf16|avx512_bf16' /proc/cpuinfo && echo bf16-mixed || echo 32-true)

.PHONY: quickstart test test-slow test-all lint types check clean

quickstart: $(READY)  ## train patch-wise IPC on the bundled photographs and test it beside a global code and PCA
	$(BIN)/python cli.py fit --config configs/experiments/photos_patch_ipc.yaml --trainer.precision $(PRECISION)
	$(BIN)/python cli.py test --config configs/experiments/photos_patch_ipc.yaml --ckpt_path last

test: $(READY)  ## run the default tests; four minutes on two idle cores
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

clean:  ## remove the environment and caches; runs are kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $(READY)
