# flash-launch: `make demo` and `make test` do everything on a fresh machine with Python 3.11, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

.PHONY: demo test test-cluster test-all mutants lint clean

demo: $(VENV)/installed
	PATH="$(BIN):$$PATH" flash-launch --nodes 2 --strategy freeze_unfreeze_deepspeed

test: lint
	$(BIN)/python -m pytest -m "not slow"

# all tests on real Slurm clusters and sshd's, and all staged failures; what they need, see README
test-cluster: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/cluster tests/e2e/test_failures.py

test-all: lint
	$(BIN)/python -m pytest

# edits of the code that tests must notice: all of tests/mutants/*.toml, or `make mutants ONLY=name`
mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants/run_mutants.py $(if $(ONLY),--only $(ONLY))

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
