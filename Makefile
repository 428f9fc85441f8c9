# Everything here sets itself up: a machine with Python >= 3.11 and make needs no other preparation.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPEC ?= examples/web-server.json
FUZZ_SECONDS ?= 60
FUZZ_TARGET ?= all
# Every rehearsal starts two daemons: they start sooner when their modules have been compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: rehearse test explore fuzz soak check bench golden clean

rehearse: $(STAMP)  ## migrate the example machine between two daemon processes
	$(BIN)/migrate rehearse $(SPEC)

test: $(STAMP)  ## the whole suite
	$(BIN)/python -m pytest -n 4

explore: $(STAMP)  ## every single fault, all pairs and 20,000 random plans, and over two connections, in simulation: some minutes
	$(BIN)/migrate explore $(SPEC)
	$(BIN)/migrate explore $(SPEC) --faults 2
	$(BIN)/migrate explore $(SPEC) --random 20000
	$(BIN)/migrate explore $(SPEC) --streams 2
	$(BIN)/migrate explore $(SPEC) --streams 2 --random 5000

fuzz: $(VENV)/.fuzz-installed  ## look for hostile input: FUZZ_SECONDS=60, FUZZ_TARGET=all (docs/fuzzing.md)
	$(BIN)/python -m tests.fuzzing $(FUZZ_TARGET) $(FUZZ_SECONDS)

soak: $(STAMP)  ## kill at every point and in pairs, every plan on real daemons, cut and flip at many bytes, larger models: half an hour
	HANDOFF_MODEL=soak MIGRATE_SOAK=1 $(BIN)/python -m pytest -n 4 tests/test_kills.py tests/test_handoff_model.py tests/test_real_faults.py

check: $(STAMP)  ## style, types, layers, published shapes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m migrate.published check

bench: $(STAMP)  ## ratios against a peer measured in the same run
	$(BIN)/python -m benchmarks

golden: $(STAMP)  ## freeze what is newly published; what exists already is never rewritten
	$(BIN)/python -m migrate.published add

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

$(VENV)/.fuzz-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
