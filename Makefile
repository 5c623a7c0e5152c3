# make demo | cluster-demo | test | test-browser | test-cluster | check | oracles | install. Each does its own set-up in
# $(VENV); a second call installs nothing: stamps below $(VENV) are older than setup.py and constraints.txt only when one of those has changed.
# Variables: PYTHON (3.11 or newer), VENV, PIP_ARGS (e.g. an index with CPU-only torch), ARGS (passed to demo or pytest).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ORACLES := transformers-4.56.2 trl-0.11.4
ORACLE_STAMPS := $(ORACLES:%=$(VENV)/oracles/%/.installed)

# Two ranks on two cores: more threads per rank only fight each other. Tokenizers are used before and after forks.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export PROMPTIST_ORACLES := $(abspath $(VENV)/oracles)

.PHONY: help install demo cluster-demo test test-browser test-cluster check oracles
.DELETE_ON_ERROR:

help:
	@echo 'make demo          train a prompt optimiser in the miniature world and write its page of pictures'
	@echo 'make cluster-demo  its PPO, shorter, preempted on a SLURM of three nodes on this host (root; slurm-wlm, munge)'
	@echo 'make test          unit and distributed tests'
	@echo 'make test-browser  tests of report and rating page in a headless Chromium (the system'"'"'s)'
	@echo 'make test-cluster  tests on a real SLURM of several nodes on this host (root; slurm-wlm, munge)'
	@echo 'make check         ruff and mypy'
	@echo 'make oracles       old releases of transformers and trl that the tests compare with'
	@echo 'make install       only the environment that `make demo` uses'

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/promptist demo $(ARGS)

cluster-demo: $(VENV)/.installed
	$(BIN)/python -m tests.cluster.demo $(ARGS)

test: $(VENV)/.installed-test $(ORACLE_STAMPS)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not cluster and not browser" $(ARGS)

test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "browser and not slow and not gpu" tests/browser $(ARGS)

test-cluster: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "cluster and not slow and not gpu" tests/cluster $(ARGS)

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy promptist jobs

oracles: $(ORACLE_STAMPS)

$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo 'error: $(PYTHON) not found: install Python 3.11 or newer, or name one with PYTHON=' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $$($(PYTHON) --version) is too old: name Python 3.11 or newer with PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
	  || { echo 'error: $(PYTHON) cannot make virtual environments: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py constraints.txt | $(BIN)/pip
	$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[local]'
	@touch $@

$(VENV)/.installed-test: setup.py constraints.txt | $(BIN)/pip
	$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[local,test]'
	@touch $(VENV)/.installed $@

# Never into the environment itself: these releases replace packages the suite needs. Moved into place when complete.
$(VENV)/oracles/%/.installed: tests/oracles/%.txt | $(BIN)/pip
	rm -rf $(VENV)/oracles/$*.new
	$(PIP) install $(PIP_ARGS) --no-deps --target $(VENV)/oracles/$*.new -r $<
	rm -rf $(VENV)/oracles/$*
	mv $(VENV)/oracles/$*.new $(VENV)/oracles/$*
	@touch $@
