# Everything here needs Python 3.8 or later and make. Each purpose has an environment of its own:
# .venv for the tests, the others in .venvs.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check bench fuzz docs clean python .venv

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: python ## Run a program written for threads on asyncio and Trio, and report its bridges
	@$(ENVIRONMENT) .venvs/demo --groups demo
	.venvs/demo/bin/python demo/run.py

# By class or document: the examples of a document build on one another.
test: .venv ## Run the tests, and every example of the documentation
	$(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

check: python ## Lint, types, documentation, packages, and the tests on every Python there is
	@$(ENVIRONMENT) .venvs/check --groups check --no-project
	.venvs/check/bin/nox $(ARGS)

bench: .venv ## Measure against upstream greenback and its neighbours
	$(BIN)/python benchmarks/run.py $(ARGS)

fuzz: .venv ## Run random programs and mutated traces for ten minutes
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

docs: python ## Build the documentation into docs/_build/html
	@$(ENVIRONMENT) .venvs/docs --groups docs
	.venvs/docs/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## Remove everything that the other targets have made
	rm -rf .venv .venvs .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf docs/_build benchmarks/.envs build dist *.egg-info *.trace.jsonl
	rm -f greenback*/*/_compiled.*.so greenback*/*/_compiled.*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: python
	@$(ENVIRONMENT) .venv --groups test demo dashboards browser --compile

# It does nothing where the environment is there. A Python that is named makes it anew if need be.
ENVIRONMENT = $(PYTHON) .ci/environment.py $(if $(filter file,$(origin PYTHON)),,--python $(PYTHON))

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 8))' || \
		{ echo "make: $(PYTHON) is older than 3.8; try: make PYTHON=python3.x"; exit 1; }
