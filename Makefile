# Everything runs in .venv, which the first target that needs it makes; `make` alone lists the targets.
PYTHON ?= python3
COMMITS ?= 2
SECONDS ?= 600
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOCS_VENV := .venv-docs
DOCS_READY := $(DOCS_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all soak mutate bench training dashboard docs figures lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'PYTHON=python3.12 chooses the interpreter of .venv, ARGS="..." adds options to demo, test, soak, mutate, bench, training and figures.'

setup: $(READY) ## make .venv with the package, editable, and everything the other targets use

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("fastconv needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	@echo "Installing fastconv and its tools into $(VENV) (a minute or two the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup ## the dense layer of 10^9 weights against small kernels, in under a minute
	$(BIN)/python -m bench --quick $(ARGS)

test: setup ## run the tests, in two processes: most of the time goes into compiling, which one thread does
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

test-all: ## the same with every case in all layouts and dtypes, and whatever else `test` takes a part of; an hour or two
	FASTCONV_TESTS=all $(MAKE) test

soak: setup ## random problems between guard pages and against other libraries, for SECONDS=600 each
	$(BIN)/python -m tests.soak --seconds $(SECONDS) $(ARGS)

mutate: setup ## break each kernel in ten ways and see that the tests notice; an hour
	$(BIN)/python -m tests.mutation $(ARGS)

bench: setup ## the whole comparison that demo abridges
	$(BIN)/python -m bench $(ARGS)

training: setup ## whole training steps against PyTorch, if that is installed; ARGS=--parts shows where the time goes
	$(BIN)/python -m bench.training $(ARGS)

figures: setup ## measure the comparison and the ladder, and redraw the figures in docs/figures
	$(BIN)/python -m bench --figure docs/figures/headline --json docs/figures/headline.json $(ARGS)
	$(BIN)/python -m bench.ladder --figure docs/figures/ladder --json docs/figures/ladder.json $(ARGS)

dashboard: setup ## measure the newest COMMITS=2 commits with asv and make the site of all results
	$(BIN)/asv machine --yes
	$(BIN)/asv run --skip-existing-successful "HEAD -n $(COMMITS)" || test $$? -eq 2 # 2: some benchmark failed, the site shows which
	$(BIN)/asv publish
	@echo "Open it with: $(BIN)/python -m http.server --directory .asv/html 8000, then http://127.0.0.1:8000 (asv loads its scripts from the internet)"

docs: $(DOCS_READY) ## build the documentation as a site, in an environment of its own; it needs no internet to be read
	$(DOCS_VENV)/bin/mkdocs build
	@echo "Open it with: $(PYTHON) -m webbrowser build/site/index.html"

$(DOCS_READY): pyproject.toml
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check '.[docs]'
	@touch $@

lint: setup ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## mend style and formatting where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, builds and caches; measurements under .asv/results stay
	rm -rf $(VENV) $(DOCS_VENV) .asv/env .asv/html bench-results fashion-mnist-results build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
