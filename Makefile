# `make sweep` runs the main job, `make test` the tests; both set everything up first.
PYTHON ?= python3
SPACE ?= search_spaces/quickstart.yaml
SEED ?= 1
CYCLES ?= 50
BIN := .venv/bin

.PHONY: sweep test long check lint types directions exhaustive chaos bench lock clean

sweep: .venv/ready
	$(BIN)/altgrad sweep $(SPACE)

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not long"

# Whole sweeps that the tests have no time for.
long: .venv/ready
	$(BIN)/python -m pytest -m long

check: lint types directions test

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

directions: .venv/ready
	$(BIN)/lint-imports

# Every float32 pattern in every format: ten minutes on two cores.
exhaustive: .venv/ready
	$(BIN)/python tests/quantization/exhaustive.py

# Faults drawn from a seed, one after another, and nothing may be lost: about a quarter of a minute each.
chaos: .venv/ready
	$(BIN)/python -m tests.chaos --seed $(SEED) --cycles $(CYCLES)

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r benchmarks/requirements.lock
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.quantize --threads 1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.quantize --threads 2
	$(BIN)/python -m benchmarks.train_step --threads 2
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.query

.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv (the first time takes a minute or two: PyTorch and Ray are large)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "altgrad needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock & \
		while kill -0 $$! 2>/dev/null; do printf .; sleep 1; done; echo; wait $$!
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Needs uv. The locks are universal (every platform and Python that pyproject.toml admits) and name no index.
lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 \
		--group dev pyproject.toml --output-file requirements.lock --upgrade
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 --no-deps \
		--group bench --output-file benchmarks/requirements.lock --upgrade

clean:
	rm -rf .venv
