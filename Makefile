# Everything here needs Python 3.8 or later and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench fuzz docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Run a program written for threads on asyncio and Trio, and report its bridges
	$(BIN)/python demo/run.py

# By class or document: the examples of a document build on one another.
test: $(INSTALLED) ## Run the tests, and every example of the documentation
	$(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

check: $(INSTALLED) ## Lint, types, documentation, packages, and the tests on every Python there is
	$(BIN)/nox $(ARGS)

bench: $(INSTALLED) ## Measure against upstream greenback and its neighbours
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: $(INSTALLED) ## Run random programs and mutated traces for ten minutes
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

docs: $(INSTALLED) ## Build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## Remove everything that the other targets have made
	rm -rf $(VENV) .venvs .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf docs/_build benchmarks/.envs build dist *.egg-info *.trace.jsonl
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip has understood dependency groups since 25.1, which needs Python 3.9; hence the list.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 8))' || \
		{ echo "make: $(PYTHON) is older than 3.8; try: make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip dependency-groups
	$(BIN)/python -m dependency_groups dev > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --editable '.[all]' --requirement $(VENV)/requirements.txt
	@touch $@
