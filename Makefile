# Each target sets everything up by itself. pip's own settings (PIP_*, pip.conf) pass through untouched;
# the second run finds the stamp and needs no network.
PYTHON ?= python3
# Another interpreter gets an environment of its own: make test PYTHON=python3.13
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup train test test-all test-oldest plugins speculators mutants bench lint

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[test]" -c constraints.txt
	touch $@

train: setup
	$(BIN)/deepspec train --strategy dspark $(ARGS)

# One process a core, each of one thread.
PYTEST := -m pytest -n auto --dist worksteal

test: setup
	$(BIN)/python $(PYTEST) $(ARGS)

# Many more examples and draws, and each source mutation; see CONTRIBUTING.
test-all: setup
	DEEPSPEC_THOROUGH=1 $(BIN)/python $(PYTEST) $(ARGS)

# Builds plugins/deepspec-ngram, installs it with pip beside the environment, and uses it.
plugins: setup
	.ci/plugins $(BIN)

mutants: setup
	$(BIN)/python -m tests.mutants.run $(ARGS)

# The oldest versions that pyproject.toml allows, in an environment of their own (torch's default wheel is gigabytes).
OLDEST := .venv-oldest/bin/python
test-oldest:
	test -x $(OLDEST) || python3.11 -m venv .venv-oldest
	$(OLDEST) -m pip install -q -e ".[test]" "torch==2.9.*" "transformers==5.10.*"
	$(OLDEST) $(PYTEST) $(ARGS)

# Loads exports with the real speculators, in an environment of its own that sees this one's packages, so that it
# brings no torch.
SPECULATORS := .venv-speculators
SPECULATORS_NEEDS := speculators==0.9.0 hs-connectors==0.9.0 pydantic-settings python-dotenv loguru openai httpx \
    sniffio aiohttp psutil
speculators: setup
	test -x $(SPECULATORS)/bin/python || $(BIN)/python -m venv --without-pip $(SPECULATORS)
	$(BIN)/python -c "import pathlib, sysconfig; here = sysconfig.get_path('purelib'); \
	    pathlib.Path(here.replace('$(VENV)', '$(SPECULATORS)'), 'main.pth').write_text(here)"
	$(BIN)/python -m pip --python $(SPECULATORS)/bin/python install -q --no-deps $(SPECULATORS_NEEDS)
	DEEPSPEC_SPECULATORS_PYTHON=$(SPECULATORS)/bin/python $(BIN)/python -m pytest tests/formats/test_speculators.py $(ARGS)

bench: setup
	failed=0; for part in bench training divergence; do \
	    $(BIN)/python benchmarks/$$part.py || failed=1; done; exit $$failed

lint: setup
	$(BIN)/python -m pip install -q -e ".[lint]" -c constraints.txt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/deptry .
	$(BIN)/lint-imports
