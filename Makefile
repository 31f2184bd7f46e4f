# On a fresh clone, with Python (3.11 or newer) and make only:
#   make quickstart   installs taro into .venv and runs the whole method on the embedded sandbox
#   make test         installs the development tools too, then ruff, mypy and pytest
#   make docs         runs the commands of docs/ and writes what they print into the pages
# Another interpreter: make PYTHON=python3.12 test. The first run downloads torch; later runs start at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint docs dist clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "taro needs Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); run: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp of each kind of installation: the second run skips pip.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing taro and what it stands on into $(VENV) (minutes; torch is large)"
	@$(PIP) -e . || { echo "pip failed; trying once more in 10 s" >&2; sleep 10; $(PIP) -e .; } || { \
		echo "pip could not install taro: see its message above; check the network, then run make again" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing taro and its development tools into $(VENV) (minutes; torch is large)"
	@$(PIP) -e '.[train,dev]' || { echo "pip failed; trying once more in 10 s" >&2; sleep 10; $(PIP) -e '.[train,dev]'; } || { \
		echo "pip could not install taro: see its message above; check the network, then run make again" >&2; exit 1; }
	@touch $@ $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/taro quickstart

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Runs the commands of docs/ and writes their outputs and tables of options anew.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m tests.docs --update

# An sdist in dist/, and the wheel that is built from it.
dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
