# Every habit of this project. Each target makes .venv by itself where there is none: Python >= 3.10, gcc and make
# are all that a machine needs. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV ?= .venv
SAMPLES ?= 3000
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := $(VENV)/bin
# Some images forbid Python to keep what it has compiled; then every start of a rank compiles torch and DeepSpeed anew.
unexport PYTHONDONTWRITEBYTECODE
# --no-compile: most files of the dependencies are never imported, and the others are compiled when they are.
INSTALL := $(BIN)/python -m pip install -qq --no-compile -c constraints.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONUNBUFFERED := 1
# Operations compiled for this environment stay in it: a cache shared by environments is rebuilt at every change.
export TORCH_EXTENSIONS_DIR := $(abspath $(VENV))/torch_extensions
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup quickstart test lint format bench checkpoint-matrix checkpoint-faults faults docs clean

help:  ## list these habits
	@echo "make TARGET, where TARGET is"
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */  \1|/' | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv and install m3ae_scale into it
	@echo "ready: activate with 'source $(VENV)/bin/activate', then 'm3ae-scale --help'"

quickstart: $(READY)  ## make data, train a tiny M3AE on 2 processes with ZeRO-3, write one HTML page (minutes)
	@start=$$(date +%s); \
	run() { echo; echo "\$$ $$*"; "$$@"; }; \
	set -e; \
	run m3ae-scale data synthesize data/quickstart --samples $(SAMPLES) --image-only 500 --text-only 500 --validation 256; \
	run m3ae-scale pretrain configs/quickstart.yaml --nproc 2 --resume; \
	echo; echo "quickstart: $$(( $$(date +%s) - start )) s after set-up"

test: $(READY_DEV)  ## run every test; prints where the time went
	@echo "building DeepSpeed's CPU operations (g++, minutes the first time)"; start=$$(date +%s); \
	python tests/build_operations.py && echo "built: $$(( $$(date +%s) - start )) s"
	@# First what one core does, two files at a time; then what takes both cores by itself.
	@status=0; \
	python -m pytest --durations=15 -n 2 --dist loadfile tests/e2e tests/unit tests/numerics || status=1; \
	python -m pytest --durations=15 tests/distributed tests/slurm || status=1; \
	exit $$status

lint: $(READY_DEV)  ## ruff, mypy and the import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(READY_DEV)  ## let ruff rewrite what it can
	ruff check --fix .
	ruff format .

bench: $(READY_DEV)  ## run every benchmark; results go to benchmarks/results/
	@set -e; for script in benchmarks/*.py; do echo "\$$ python $$script"; python $$script; done

checkpoint-matrix: $(READY_DEV)  ## resume every layout from every other one; the table goes to benchmarks/results/ (half an hour)
	CHECKPOINT_MATRIX=full CHECKPOINT_MATRIX_OUTPUT=benchmarks/results/checkpoint_matrix.md \
		python -m pytest tests/distributed/test_checkpoint_matrix.py --timeout 3600

checkpoint-faults: $(READY_DEV)  ## kill a saving run 200 times; what was lost goes to benchmarks/results/
	CHECKPOINT_KILLS=200 CHECKPOINT_FAULTS_OUTPUT=benchmarks/results/checkpoint_faults.md \
		python -m pytest tests/distributed/test_checkpoint_faults.py -k random_moments

faults: $(READY_DEV)  ## let each fault happen to a run of its own; the table goes to benchmarks/results/
	python tests/distributed/fault_table.py benchmarks/results/faults.md

docs: $(READY)  ## rewrite docs/reference/ from the code: every verb and every key
	python docs/make_reference.py

clean:  ## remove .venv, caches and builds; data/ and runs/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by its exact number (see constraints.txt): whatever is asked for after it finds it there.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is not Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@command -v g++ >/dev/null || echo "note: no g++ here; DeepSpeed needs it for its CPU operations" >&2
	@start=$$(date +%s); set -e; \
	echo "set-up: $(VENV) with $$($(PYTHON) --version), a few minutes the first time"; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"; \
	$(INSTALL) -e .; \
	touch $@; \
	echo "set-up: $$(( $$(date +%s) - start )) s"

$(READY_DEV): $(READY)
	@start=$$(date +%s); set -e; \
	$(INSTALL) -e '.[dev]'; \
	touch $@; \
	echo "set-up of the tools for tests: $$(( $$(date +%s) - start )) s"
