# flash-launch: `make demo` and `make test` do everything on a fresh machine with Python 3.11, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

.PHONY: demo test test-cluster test-all test-versions mutants lint clean

demo: $(VENV)/installed
	PATH="$(BIN):$$PATH" flash-launch --nodes 2 --strategy freeze_unfreeze_deepspeed

test: lint $(VENV)/examples/installed
	$(BIN)/python -m pytest -m "not slow"

# all tests on real Slurm clusters and sshd's, and all staged failures; what they need, see README
test-cluster: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/cluster tests/e2e/test_failures.py

test-all: lint $(VENV)/examples/installed
	$(BIN)/python -m pytest

# the engine and checkpoint tests on each accepted version of DeepSpeed and Lightning, or `make test-versions ONLY=deepspeed==0.18.9`
test-versions: $(VENV)/installed-test
	$(BIN)/python tests/versions/run_versions.py $(if $(ONLY),--only $(ONLY))

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

# timm and transformers, above the environment: beside torchmetrics they would slow every import of it
$(VENV)/examples/installed: $(VENV)/installed-test
	test -x $(VENV)/examples/bin/python || $(BIN)/python -m venv --without-pip $(VENV)/examples
	$(BIN)/python -c 'import sysconfig; print(f"import site; site.addsitedir({sysconfig.get_path('"'"'purelib'"'"')!r})")' \
	    > "$$($(VENV)/examples/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(VENV)/examples/bin/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python -c \
	    'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["examples"])')
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
