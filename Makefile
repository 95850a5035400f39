# Each target sets everything up by itself. pip's own settings (PIP_*, pip.conf) pass through untouched;
# the second run finds the stamp and needs no network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup train test bench lint

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[test]" -c constraints.txt
	touch $@

train: setup
	$(BIN)/deepspec train --strategy dspark $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

bench: setup
	$(BIN)/python benchmarks/bench.py; missed=$$?; $(BIN)/python benchmarks/training.py && exit $$missed

lint: setup
	$(BIN)/python -m pip install -q -e ".[lint]" -c constraints.txt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
