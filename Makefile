# Every target works as the first command on a machine with Python 3.11+, make and a package registry.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Hundreds of processes are started: compiled once, as in an installed package, not at each start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test soak bench lint format clean

help:
	@echo "make demo [INPUT=FILE]  archive a log through the embedded broker, replay it, compare the two"
	@echo "make test               ruff, mypy strict, pytest"
	@echo "make soak               the long proofs: hundreds of crash cycles"
	@echo "make bench              throughput beside the floor of this machine"
	@echo "make lint / format      ruff and mypy / ruff format"

# `python -m venv` is run again over an old folder when the pins change: it keeps what still fits.
$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nsqtools needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing what is pinned into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/nsqtools demo $(if $(INPUT),--input "$(INPUT)")

# Many tests wait for something: one worker more than there are processors.
test: lint
	PYTEST_XDIST_AUTO_NUM_WORKERS=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) \
	    $(BIN)/python -m pytest -m "not soak" -n auto --dist worksteal

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

bench: $(STAMP)
	@$(BIN)/python -m tests.benchmarks $(BENCH)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
