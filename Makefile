# Everything here sets itself up: a fresh machine needs Python 3.11+, make and the package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# waiting threads sleep instead of spinning: the suite shares its cores
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test check bench clean

help:  ## list these tasks
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## install, then train, measure and report on real data; prints where the report is
	$(BIN)/landscape demo --out landscape-demo

test: $(STAMP)  ## the tests, a process a core (no GPU, no network, no download)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP)  ## formatting rules, types, import directions
	$(BIN)/ruff check landscape/*.py analysis cli tests benchmarks
	$(BIN)/ruff format --check landscape/*.py analysis cli tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## the benchmarks, side by side in one run; prints medians and ratios
	env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/foundation.py

clean:  ## remove what these tasks made
	rm -rf $(VENV) landscape-demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
