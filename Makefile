# make quickstart   trains small models, scores them and writes a report: ARGS="--seed 1"
# make test         the fast tests: 8 minutes on two cores; no root, network, GPU or test photos
# make test-all     those, the slow ones and those of ../shared's photos: 20 minutes
# make test-slurm   jobs on a SLURM of two nodes on this machine: needs root on Debian or Ubuntu
# make check        format, lint, words, import contracts, types
# make format       formats, and mends what lint can
# make venv         sets up .venv alone, about 6 GB; each of the others does so, once
# make clean        removes what the others have made, but for .venv
#
# Tests take ARGS: make test ARGS=tests/losses. VENV=FOLDER is an environment for several clones: it
# gets the dependencies alone, and `FOLDER/bin/python -m efficientsam_pl` is the command there.
PYTHON ?= python3
VENV ?= .venv
override VENV := $(patsubst ~/%,$(HOME)/%,$(VENV))
BIN := $(VENV)/bin
# The code that stands here is the code that runs, also in an environment of several clones
export PYTHONPATH := $(CURDIR)
# Two tests at a time, each on one thread: 24 GB and two cores suffice
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2

.PHONY: help venv quickstart test test-all test-slurm check format clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

venv:
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) .ci/environment.py $(VENV)

quickstart: venv
	$(BIN)/python -m efficientsam_pl quickstart $(ARGS)

test: venv
	$(PYTEST) -m 'not (slow or shared or slurm)' $(ARGS)

test-all: venv
	$(PYTEST) -m 'not slurm' $(ARGS)

test-slurm: export EFFICIENTSAM_CLUSTER := $(shell mktemp -u /tmp/slurm-XXXXXX)
test-slurm: venv
	trap 'slurm/local_cluster.sh down' EXIT; trap 'exit 130' INT TERM; \
	cluster=$$(slurm/local_cluster.sh up) && eval "$$cluster" && \
	$(BIN)/python -m pytest -m slurm $(ARGS) tests/slurm

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python .ci/words.py
	$(BIN)/lint-imports
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf quickstart_out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
