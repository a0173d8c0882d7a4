# Sets up everything in .venv by itself: `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3
SECONDS_TO_PLAY ?= 20
BIN := .venv/bin
PEERS := dcmtk orthanc dicom3tools chromium openssl libsrt1.5-openssl srt-tools iproute2
BENCH_VIDEO := videos/000000.mp4

.DEFAULT_GOAL := help
.PHONY: help install demo test test-v4l2 test-all lint format types bench demo-bundle clean

help: ## List the targets.
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## Create .venv with all commands, without the trainer.

demo: .venv/.installed ## Watch the real pipeline on a real ultrasound cine (SECONDS_TO_PLAY=20).
	@$(BIN)/python -m tools.demo --seconds $(SECONDS_TO_PLAY) --out demo-output

test: lint types .venv/.peers ## Lint, types and the tests.
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not tensorrt"

test-v4l2: .venv/.tested ## The tests on a real /dev/video0 in a virtual machine: 4 minutes, as root on Debian 12, nothing beside it.
	$(BIN)/python -m pytest tests/test_v4l2.py

test-all: lint types .venv/.peers ## The same with the slow tests.
	$(BIN)/python -m pytest

lint: .venv/.tested ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.tested ## Mend style and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.tested ## Check types, strictly, of edge and engines.
	$(BIN)/mypy

bench: build/bench/trivial ## Measure the numbers of docs/benchmarks.md on this machine (installs the test tools; 8 minutes).
	$(BIN)/edge-bench engine engines/demo
	$(BIN)/edge-bench pipeline --source build/bench/720p/$(BENCH_VIDEO) --seconds 60
	$(BIN)/edge-bench pipeline --source demo --pace max --seconds 30
	$(BIN)/edge-bench pipeline --source build/bench/480p/$(BENCH_VIDEO) --engine build/bench/tin-r18 --pace max --seconds 60
	$(BIN)/edge-bench pipeline --source build/bench/480p/$(BENCH_VIDEO) --engine build/bench/trivial --pace max --seconds 40
	$(BIN)/edge-bench pipeline --source demo --pace max --seconds 600 --max-windows 20000
	$(BIN)/edge-bench display --seconds 60

build/bench/trivial: | .venv/.tested
	rm -rf build/bench
	mkdir -p build/bench
	$(BIN)/edge-phantom build/bench/720p --num-videos 1 --num-frames 300 --size 1280x720 --seed 1
	$(BIN)/edge-phantom build/bench/480p --num-videos 1 --num-frames 300 --size 640x480 --seed 1
	$(BIN)/python -m trainer.untrained build/bench/tin-r18 --model tin-r18
	$(BIN)/python -m tools.trivial build/bench/trivial

demo-bundle: .venv/.tested ## Train the demo bundle anew, on synthetic phantom sweeps alone.
	$(BIN)/python -m trainer.demo --out engines/demo

clean: ## Remove .venv and what the tools wrote.
	rm -rf .venv build demo-output .pytest_cache .mypy_cache .ruff_cache *.egg-info

# Debian's python3 comes without venv
.venv/bin/python:
	$(PYTHON) -m venv .venv || (rm -rf .venv && apt-get update && apt-get install -y python3-venv && $(PYTHON) -m venv .venv)

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv, about a minute ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The programs that the tests talk to: DICOM peers and validator, a browser, an SRT sender.
.venv/.peers: Makefile | .venv/bin/python
	@(for program in storescu Orthanc dciodvfy chromium openssl srt-live-transmit ip; do command -v $$program >/dev/null || exit 1; done && touch $@) || \
	(echo "Installing the tests' peers (Debian packages $(PEERS)) ..." && \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PEERS) >/dev/null && touch $@)

# torch goes first and by its exact version: whatever depends on it must not choose another
.venv/.tested: .venv/.installed
	@echo "Installing torch and the test tools into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	@touch $@
