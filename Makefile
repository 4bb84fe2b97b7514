# Every target makes what it needs: `make test` on a fresh checkout creates .venv, installs, and tests.
# Make's own names (targets, stamps) are relative, so that the checkout may lie in a path with spaces.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Two installs into one environment at the same time would break it.
.NOTPARALLEL:
# A stamp must not survive the failure of the install that it stands for.
.DELETE_ON_ERROR:

# A Python that you name is used or refused. Otherwise the first that fits is taken.
PYTHON ?= python3
CANDIDATES := $(if $(filter file,$(origin PYTHON)),python3 python3.13 python3.12 python3.11,"$(PYTHON)")

BIN := .venv/bin
PIP := python -m pip install --quiet --disable-pip-version-check

# The suite runs in two processes; more BLAS threads than one each would only get in each other's way.
TEST_ENV := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: help demo test test-quick test-loopback lint bench lessons site test-matrix parity oracles clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: .venv/.ready-run  ## train a small language model on Moby-Dick, write runs/demo (about 2 minutes)
	$(BIN)/minitf demo --out runs/demo

test: .venv/.ready-dev  ## run the test suite
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

test-quick: .venv/.ready-dev  ## run the tests that are quick: no lessons, no grading, no site
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow and not browser"

test-loopback: .venv/.ready-dev  ## run the quick tests once more, every kernelized operation through the dispatch
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow and not browser" --ignore=tests/backends --backend loopback

lint: .venv/.ready-dev  ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

bench: .venv/.ready-run  ## measure speed on this machine
	$(BIN)/minitf bench

lessons: .venv/.ready-lessons  ## open the lessons in JupyterLab
	$(BIN)/minitf lessons

site: .venv/.ready-docs  ## build the site into build/site (about two minutes the first time)
	@mkdir -p build/site-source
	$(TEST_ENV) $(BIN)/python -m sphinx -W --keep-going -b html -c docs -d build/site-doctrees build/site-source build/site
	@echo "Open build/site/index.html, or serve it: $(BIN)/python -m http.server --directory build/site"

test-matrix:  ## run the test suite on Python 3.11 to 3.13, each with the oldest and the newest NumPy
	@$(TEST_MATRIX)

parity: .venvs/parity/.ready  ## compare with torch, transformers, autograd and jax (installs them, several GB)
	$(TEST_ENV) .venvs/parity/bin/python -m pytest -m parity

oracles: .venvs/oracles/.ready  ## write the frozen answers of published code anew (installs it, several GB)
	cd tests/oracles && for make in make_*.py; do \
	  ../../.venvs/oracles/bin/python $$make $(if $(CHECKOUTS),"$(abspath $(CHECKOUTS))"); done

clean:  ## remove the environments and what tools left behind (runs/ stays)
	rm -rf .venv .venvs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. A stamp says which extras an environment holds; it is older than pyproject.toml when they may have changed.

.venv/.ready-run: pyproject.toml | .venv/bin/python
	@echo "Installing minitf into .venv. This happens once and takes about a minute."
	@$(BIN)/$(PIP) --editable .
	@touch $@

.venv/.ready-%: pyproject.toml | .venv/bin/python
	@echo "Installing minitf with the extra '$*' into .venv. This happens once and takes about a minute."
	@$(BIN)/$(PIP) --editable ".[$*]"
	@touch $@

.venvs/parity/.ready: pyproject.toml
	@$(FIND_PYTHON); echo "Installing minitf and its oracles into .venvs/parity. This happens once and takes some minutes."; \
	"$$py" -m venv .venvs/parity
	@.venvs/parity/bin/$(PIP) --editable ".[dev,parity]"
	@touch $@

# torch and transformers bring what they need; the others are asked for without their dependencies, among which
# some name another torch.
.venvs/oracles/.ready: $(wildcard tests/oracles/requirements*.txt)
	@$(FIND_PYTHON); echo "Installing published implementations into .venvs/oracles. This takes some minutes."; \
	"$$py" -m venv .venvs/oracles
	@.venvs/oracles/bin/$(PIP) --requirement tests/oracles/requirements.txt
	@for list in tests/oracles/requirements-*.txt; do .venvs/oracles/bin/$(PIP) --no-deps --requirement "$$list"; done
	@touch $@

.venv/bin/python:
	@$(FIND_PYTHON); "$$py" -m venv .venv

# Sets py to the first candidate that is Python 3.11 or newer and can make an environment, or says what to do.
define FIND_PYTHON
py=""; why=""; tried=""; \
for p in $(CANDIDATES); do \
  version=$$("$$p" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || { tried="$$tried $$p"; continue; }; \
  if ! "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
    why="$$p is Python $$version, which is too old."; \
  elif ! "$$p" -c 'import venv, ensurepip' 2>/dev/null; then \
    why="$$p is Python $$version, but its venv module is missing (on Debian and Ubuntu: apt install python$$version-venv)."; \
  else \
    py=$$p; break; \
  fi; \
done; \
if [ -z "$$py" ]; then \
  echo "$${why:-None of these can be run:$$tried.} minitf needs Python 3.11 or newer with its venv module. Install one, or name one: make PYTHON=/path/to/python" >&2; \
  exit 1; \
fi
endef

# One environment per Python and NumPy. A Python that is not here, or for which the old NumPy does not install, is
# reported as not run. pyenv hides the versions that are not active; PYENV_VERSION asks for one, elsewhere it does nothing.
define TEST_MATRIX
report=""; ran=0; failed=0; \
for version in 3.11 3.12 3.13; do \
  who='import sys; print(sys.executable)'; \
  py=$$(python$$version -c "$$who" 2>/dev/null || PYENV_VERSION=$$version python$$version -c "$$who" 2>/dev/null) || py=""; \
  for numpy in oldest newest; do \
    env=.venvs/py$$version-numpy-$$numpy; \
    want=numpy; \
    if [ $$numpy = oldest ]; then \
      want='numpy==2.0.*'; \
      [ $$version != 3.13 ] || want='numpy==2.1.*'; \
    fi; \
    echo "== Python $$version, $$numpy NumPy"; \
    if [ -z "$$py" ]; then \
      result="not run: python$$version is not here"; \
    elif ! { "$$py" -m venv $$env && $$env/bin/$(PIP) --upgrade "$$want" --editable ".[dev]"; }; then \
      result="not run: the environment could not be made"; \
      [ $$numpy = oldest ] || { result="FAILED: the environment could not be made"; failed=1; }; \
    else \
      ran=1; \
      have=$$($$env/bin/python -c 'import numpy; print(numpy.__version__)'); \
      if $(TEST_ENV) $$env/bin/python -m pytest -n 2; then result="passed (NumPy $$have)"; \
      else result="FAILED (NumPy $$have)"; failed=1; fi; \
    fi; \
    report="$$report  Python $$version, $$numpy NumPy: $$result"$$'\n'; \
  done; \
done; \
printf '\nTest matrix\n%s' "$$report"; \
[ $$ran = 1 ] || { echo "Nothing was run: install Python 3.11, 3.12 or 3.13." >&2; exit 1; }; \
exit $$failed
endef
