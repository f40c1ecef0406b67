# make quickstart | test | test-slurm | check: each sets up what it needs, once.
# VENV=PATH shares one virtual environment (about 6 GB) between several clones.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.efficientsam-$(shell cksum < pyproject.toml | tr ' ' '-')
BIN := $(VENV)/bin
# The checkout that stands here is the one that runs, also when several share one environment.
export PYTHONPATH := $(CURDIR)

.PHONY: venv quickstart test test-slurm check format clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: venv
	$(BIN)/python -m efficientsam_pl quickstart $(ARGS)

# Two at a time, a file's tests in one process, each with one thread: 24 GB and two cores suffice
test: venv
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Real jobs on a SLURM of two nodes on this machine: needs root on Debian or Ubuntu
test-slurm: export EFFICIENTSAM_CLUSTER := $(shell mktemp -u /tmp/slurm-XXXXXX)
test-slurm: venv
	trap 'slurm/local_cluster.sh down' EXIT; trap 'exit 130' INT TERM; \
	cluster=$$(slurm/local_cluster.sh up) && eval "$$cluster" && \
	$(BIN)/python -m pytest -m slurm $(ARGS) tests/slurm

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf quickstart_out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
