# Every target sets up what it needs: a virtual environment with the pinned packages of requirements.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?= experiment=quickstart
READY := $(VENV)/.ready
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal --durations=15

.PHONY: help train test test-all lint lock clean

help: ## Show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.lock
	$(RUN) -m pip install --quiet --no-deps --editable .
	@touch $@

train: $(READY) ## Train the quickstart, or what ARGS="model=gan data=quadratic" says
	$(RUN) train.py $(ARGS)

test: $(READY) ## The tests of every change, at most five minutes on two cores
	$(TEST) -m "not slow"

test-all: $(READY) ## All tests, at most 25 minutes
	$(TEST)

lint: $(READY) ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

lock: ## Pin what is installed now; graphics libraries are for Linux only
	$(RUN) -m pip freeze --exclude-editable | grep -v '^ganforge' \
	  | sed -E '/^(nvidia|cuda|triton)/ s/$$/ ; sys_platform == "linux"/' > requirements.lock

clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
