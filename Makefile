# Sets up everything in .venv by itself: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
SECONDS_TO_PLAY ?= 20
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format types bench demo-bundle clean

help: ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Create .venv with all commands, without the trainer.

demo: .venv/.installed ## Watch the real pipeline on a real ultrasound cine (SECONDS_TO_PLAY=20).
	@$(BIN)/python -m tools.demo --seconds $(SECONDS_TO_PLAY) --out demo-output

test: lint types ## Lint, types and the tests.
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: lint types ## The same with the slow tests.
	$(BIN)/python -m pytest

lint: .venv/.tested ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.tested ## Mend style and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.tested ## Check types, strictly, of edge and engines.
	$(BIN)/mypy

bench: .venv/.tested ## Measure the numbers of docs/benchmarks.md on this machine.
	$(BIN)/python -m tools.bench_all

demo-bundle: .venv/.tested ## Train the demo bundle anew, on synthetic phantom sweeps alone.
	$(BIN)/python -m trainer.demo --out engines/demo

clean: ## Remove .venv and what the tools wrote.
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info

# Debian's python3 comes without venv
.venv/bin/python:
	$(PYTHON) -m venv .venv || (rm -rf .venv && apt-get update && apt-get install -y python3-venv && $(PYTHON) -m venv .venv)

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

# torch goes first and by its exact version: whatever depends on it must not choose another
.venv/.tested: .venv/.installed
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[train,test]'
	@touch $@
