# Every target makes the environment that it needs in .venv, from the versions in constraints.txt.
# Needs python3 (3.11 or newer), make and git.

PYTHON ?= python3
# File with exact versions. Empty (make test PYTHON=python3.13 CONSTRAINTS=): the newest that PYTHON can have, in an
# environment of their own.
CONSTRAINTS ?= constraints.txt
VENV   ?= $(if $(CONSTRAINTS),.venv,.venv-newest-$(notdir $(PYTHON)))
BIN    := $(VENV)/bin
DATA   ?=
# Weights of a MobileNetV2 that lie beside the data need no download; without them the demo takes torchvision's resnet50.
WEIGHTS ?= $(if $(DATA),$(wildcard $(DATA)/../../weights/mobilenet_v2_imagenet.safetensors))
OUT    ?= demo
PYTEST_ARGS ?=
# Of the benchmarks: sizes in slices of DLPFC, torch's threads, where they run, what else pytest is given.
SCALES  ?= 1 4 16 64
THREADS ?= 1
DEVICE  ?= cpu
BENCH_ARGS ?=
ROUNDS  ?= 3
BASE    ?=
HEAD    ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test pytest test-newest bench bench-compare lint style types format docs env constraints clean distclean

help:
	@echo "make demo               train on synthetic sections, predict a held-out one, draw it in $(OUT)/"
	@echo "make demo DATA=folder   the same on the HER2+ breast tumor sections in that folder"
	@echo "make test               linters, types and all tests"
	@echo "make bench              benchmarks: growth with the number of spots, shares of the physical limits (SCALES=\"1 4\": less)"
	@echo "make bench-compare BASE=commit [HEAD=commit]   the same benchmarks of two commits, in turn"
	@echo "make test PYTHON=python3.13 CONSTRAINTS=   the same with the newest versions of all libraries"
	@echo "make test-newest PYTHON=python3.13 CONSTRAINTS=   the life cycle of a model alone, with these"
	@echo "make lint               linters and types alone"
	@echo "make format             format the code"
	@echo "make docs               the site, in docs/_build/html"
	@echo "make clean              remove what was built; make distclean removes the environments too"

# One stamp per set of extras: a second run starts at once, and a change of the dependencies installs what changed.
$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; st-gchb needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V); st-gchb needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; install it (on Debian and Ubuntu the package is called python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# uv takes one minute where pip takes five. INSTALLER=pip is for machines whose mirror only pip knows of.
INSTALLER ?= uv
PIP := $(BIN)/python -m pip
PINS := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
INSTALL_uv  := $(BIN)/uv pip install --python $(BIN)/python $(if $(CONSTRAINTS),--build-constraint $(CONSTRAINTS))
INSTALL_pip := $(PIP) install --disable-pip-version-check

define install
@echo "Installing st-gchb[$(1)] into $(VENV): about 7 GB, one to five minutes, once"
$(PIP) install --quiet --disable-pip-version-check $(PINS) uv
$(INSTALL_$(INSTALLER)) $(PINS) --editable ".[$(1)]"
@touch $@
endef

$(VENV)/.test: $(VENV)/.python pyproject.toml $(CONSTRAINTS)
	$(call install,test)

$(VENV)/.docs: $(VENV)/.test
	$(call install,docs)

$(VENV)/.bench: $(VENV)/.test
	$(call install,bench)

env: $(VENV)/.test

demo: $(VENV)/.test
	$(BIN)/st-gchb demo --out $(OUT) $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--encoder mobilenet_v2 texture --weights $(WEIGHTS))

lint: style types

style: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread per worker: two workers that each start a thread per core get in one another's way. Each takes one half of
# the tests, and from the other's what is left at the end, so that models of a folder's tests are trained by one of them
# alone. Bytecode is kept, also where the environment forbids it: else every process of the tests compiles all libraries
# anew, for ten seconds or more.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=agg \
  $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# Types are checked beside the tests, which fills a core where these use one: while they start, and at their end.
test: style
	@$(MAKE) --no-print-directory --jobs 2 types pytest

pytest: $(VENV)/.test
	$(PYTEST)

# What a user does from set-up to a saved prediction, files of models and of tables, and the command line: where new
# versions of the libraries have broken something so far.
NEWEST_PART ?= \
  $(addprefix tests/model/test_,life_cycle.py saving.py results.py results_in_files.py spatialdata.py last_stage.py) \
  $(addprefix tests/pp/test_,tables.py raster.py graph.py label_regions.py) tests/cohort/test_door.py \
  tests/cli/test_commands.py tests/io/test_geojson.py

test-newest: $(VENV)/.test
	$(PYTEST) $(NEWEST_PART)

# One thread unless more are asked for, of every library, so that CPU time means the same in each run.
BENCH_ENV := OMP_NUM_THREADS=$(THREADS) NUMBA_NUM_THREADS=$(THREADS) MPLBACKEND=agg
BENCH_OPTIONS := --threads $(THREADS) --device $(DEVICE) $(BENCH_ARGS)

bench: $(VENV)/.bench
	$(BENCH_ENV) $(BIN)/python -m pytest -c benchmarks/pytest.ini benchmarks --scales "$(SCALES)" $(BENCH_OPTIONS)

# Six runs: small sizes, unless others are asked for.
bench-compare: SCALES = 1 4
bench-compare: $(VENV)/.bench
	@test -n "$(BASE)" || { echo "error: say with which commit to compare: make bench-compare BASE=main" >&2; exit 1; }
	$(BENCH_ENV) $(BIN)/python benchmarks/compare.py $(BASE) $(HEAD) --rounds $(ROUNDS) --scales "$(SCALES)" -- $(BENCH_OPTIONS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html"

# The newest versions that resolve together, on every supported Python; where the newest needs a newer Python, an older
# one stands beside it, each with its marker. BUILD holds what builds the packages.
BUILD := uv hatchling editables setuptools
constraints: $(VENV)/.test
	printf '%s\n' $(BUILD) | $(BIN)/uv pip compile pyproject.toml - --all-extras --universal --python-version 3.11 \
	  --upgrade --no-annotate --no-header --output-file constraints.txt

clean:
	rm -rf docs/_build docs/generated docs/getting-started/tutorials dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-newest-* $(VENV)
