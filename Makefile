# Commands for people; the README has each of them in plain form too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: quickstart test test-slow test-all lint types check clean

quickstart: $(READY)  ## train IPC on the embedded photographs, evaluate it, draw it beside the bundled weights
	$(BIN)/python cli.py fit --config configs/experiments/photos_ipc.yaml
	$(BIN)/python cli.py test --config configs/experiments/photos_ipc.yaml --ckpt_path last

test: $(READY)  ## the default tests, four minutes on two free cores
	$(BIN)/python -m pytest -n auto

test-slow: $(READY)  ## only the slow ones
	$(BIN)/python -m pytest -n auto -m slow

test-all: $(READY)  ## every test
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(READY)
	$(BIN)/mypy

check: test lint types  ## what continuous integration runs

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $(READY)
