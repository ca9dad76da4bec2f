# Two commands for newcomers: `make demo` and `make test`. Everything else is a part of them, or for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2
UV := $(shell command -v uv 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup packages demo test quick lint types check bench soak guest-kernel guest-qemu lock docs clean

help:  ## Show what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

# The environment is made once, and again when the pinned dependencies change.
setup: $(VENV)/.made  ## Make the virtual environment

$(VENV)/.made: requirements.lock pyproject.toml scripts/make-venv
	@PYTHON="$(PYTHON)" UV="$(UV)" sh scripts/make-venv "$(VENV)"
	@touch $@

packages:  ## Install what the tests need from Debian (as root; otherwise say what is missing)
	@PYTHON="$(PYTHON)" sh scripts/install-packages tests

# Root gets the better driver (oci); everybody else, and who has no apt, gets the one that works, and is told which and why.
demo: setup  ## Run the main job, end to end, on an embedded server
	@[ "$$(id -u)" != 0 ] || PYTHON="$(PYTHON)" sh scripts/install-packages --optional demo oci
	@$(BIN)/strandline demo $(ARGS)

test: setup packages  ## Run every test
	@$(PYTEST) -n $(WORKERS) --dist worksteal $(ARGS)

quick: setup  ## Run the tests that need less than a minute altogether
	@STRAND_EXAMPLES=quick $(PYTEST) -m "quick and not slow and not root" $(ARGS)

soak: setup packages  ## Half an hour of work and faults, as root, and a look at what is left (ARGS="--minutes 60 --seed 1")
	@PYTHONPATH=tests:. $(BIN)/python tests/soak/soak.py $(ARGS)

lint: setup  ## Style and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup  ## mypy, strict
	@$(BIN)/mypy

check: lint types test  ## What CI runs

bench: setup packages  ## Print the ratios of docs/benchmarks.md
	@$(BIN)/python -m benchmarks $(ARGS)

docs: setup  ## Write the generated documents again
	@$(BIN)/python -m scripts.generate_docs

guest-kernel: setup  ## Build a minimal kernel for microVMs from Debian's linux-source (some minutes)
	@PYTHON="$(BIN)/python" sh scripts/guest-kernel

guest-qemu: setup  ## Build a minimal QEMU for microVMs from Debian's source package (some minutes)
	@PYTHON="$(BIN)/python" sh scripts/guest-qemu

lock: setup  ## Pin the dependencies anew
	@[ -n "$(UV)" ] || $(BIN)/pip install --quiet uv
	@$(if $(UV),$(UV),$(BIN)/uv) pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.lock

clean:  ## Remove the environment and every cache
	@rm -rf $(VENV) .guest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
