# Two targets do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.locked
VLLM := .venv-vllm

.PHONY: setup programs vllm demo test test-slow test-gpu test-all lint audit format lock docs clean

setup: $(STAMP)
	$(BIN)/appliance model pull

# torch first: the same pin is a CPU build on one machine and a CUDA build on another; the lock holds everything else.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $(STAMP)

# Programs that only tests use, and no image.
programs: $(VENV)/.programs

$(VENV)/.programs: tools/programs.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tools/programs.lock
	touch $@

# vLLM has an environment of its own, because its pins clash with everyone's: what docker/engine.lock names where there is no NVIDIA GPU,
# upstream's package where there is one (not run: no GPU was at hand).
vllm: $(VLLM)/.locked

$(VLLM)/.locked: docker/engine.lock
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	if command -v nvidia-smi > /dev/null; then \
	    $(VLLM)/bin/python -m pip install --quiet "vllm==0.32.0"; \
	else \
	    $(VLLM)/bin/python -m pip install --quiet "torch==2.13.0" && \
	    $(VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r docker/engine.lock; \
	fi
	touch $@

demo: setup
	$(BIN)/appliance demo --folder demo-workspace

# One process a core, each with one thread: the suite takes half as long, and the figures of no test depend on it.
test: setup programs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Real models and processes at smoke sizes: two files at a time, and never two of those that take gigabytes (tests/conftest.py).
test-slow: setup programs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not full" -n auto --maxprocesses 2 --dist loadfile --durations=25

# What only NVIDIA GPUs can show; skipped without one (not run: no GPU was at hand).
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs

# Everything at full size.
test-all: setup programs
	$(BIN)/python -m pytest -m "slow or full or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of the locked packages; says "skipped" where no source of advisories can be reached.
audit: $(STAMP)
	$(BIN)/python tools/audit_dependencies.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Regenerate the lock from requirements.in (needs network); torch and what only its CUDA build brings stay out of it.
lock: $(STAMP)
	sh tools/lock.sh

docs: $(STAMP)
	$(BIN)/python -m appliance.cli.reference > docs/cli.md

clean:
	rm -rf $(VENV) $(VLLM) demo-workspace build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
