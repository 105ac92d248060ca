# make demo      train on real digits, sample, measure, compare: runs/demo/report.html
# make test      the quick tests, two to five minutes
# make test-all  all tests
# make lint      style and types
# make types     types of the package and of the Python in README and docs, by pyright
# make lowest    everything once with the oldest packages that pyproject.toml allows; LOWEST_TORCH=2.13.0 spares the old torch

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
LOWEST_TORCH ?= 2.5.0
# tests of small tensors: a process for each core, and each with one thread; compiled tests are kept for the next run
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

.PHONY: demo test test-all slow lint style types lowest clean
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("score_sde needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	# without ensurepip a virtual environment has no pip of its own: the system's installs into it instead
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || $(PYTHON) -m venv --without-pip .venv
	if [ -x $(BIN)/pip ]; then $(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'; \
	else $(PYTHON) -m pip --python $(BIN)/python install -q -c constraints.txt -e '.[test]'; fi
	touch $@

demo: .venv/installed
	$(BIN)/score-sde demo --workdir=runs/demo

test: .venv/installed
	$(PYTEST)

slow: .venv/installed
	$(PYTEST) -m slow

test-all: test slow

lint: style types

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/python -m tests.check_types

# in an environment of its own; PyPI has the oldest torch with CUDA alone, which is 5.5 GB
lowest:
	[ -x .venv-lowest/bin/python ] || $(PYTHON) -m venv .venv-lowest || $(PYTHON) -m venv --without-pip .venv-lowest
	if [ -x .venv-lowest/bin/pip ]; then .venv-lowest/bin/python -m pip install -q -c tests/lowest-constraints.txt torch==$(LOWEST_TORCH) .; \
	else $(PYTHON) -m pip --python .venv-lowest/bin/python install -q -c tests/lowest-constraints.txt torch==$(LOWEST_TORCH) .; fi
	OMP_NUM_THREADS=1 .venv-lowest/bin/python tests/lowest.py

clean:
	rm -rf .venv .venv-lowest build dist
