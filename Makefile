# Two commands on a fresh machine with Python and git: `make demo` and `make test`.
# All that is installed goes into .venv; uv is brought there if the machine has none.

PYTHON ?= python3
SEED ?= 0
ONLY ?=
SIZE ?=
CASE ?=
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
READY := $(VENV)/.ready
# The tests start Python dozens of times, so its bytecode is kept even where the environment says not to.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-quick test-versions faults bench gpu lint lock chromium clean

demo: $(READY)
	$(BIN)/midsight demo

test: lint chromium
	$(PYTEST)

test-quick: $(READY)
	$(PYTEST) -m "not slow"

# The parity suite with the oldest and the newest libraries that pyproject.toml permits, each in an environment of its
# own (about 6 GB each, and 10 minutes on two cores); writes docs/versions.md.
test-versions: $(READY)
	$(BIN)/python scripts/test_versions.py

# All experiments of docs/reliability.md at their full counts, about an hour; writes its tables. ONLY="Long runs" runs
# the experiments of one table.
faults: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults $(SEED) $(if $(ONLY),--only "$(ONLY)")

# The original procedure, plain batches and midsight: about an hour and a half on two cores that have nothing else to
# do. SIZE=demo (a few minutes), mid or full (both of the first by default), CASE=part of a case's name; writes
# benchmarks/results/ and docs/performance.md.
bench: $(READY)
	$(BIN)/python -m benchmarks $(addprefix --size ,$(SIZE)) --device $(DEVICE) $(if $(CASE),--case "$(CASE)")

# Everything that needs a GPU, in eight minutes, on a machine with one CUDA device: it needs this checkout and a PYTHON
# with torch 2.11 or later, and says what else is missing. DEVICE=cpu tries it with the small model.
gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu --device $(if $(filter command line,$(origin DEVICE)),$(DEVICE),cuda)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

$(READY): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v $(UV) >/dev/null || $(BIN)/python -m pip install --quiet uv
	$(UV) pip install --quiet --python $(BIN)/python --requirement requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

# The tests of the report need a browser. Debian's is installed where that is possible; elsewhere, without one, they are
# skipped.
chromium:
	@command -v chromium >/dev/null || ! grep -q '^ID=debian' /etc/os-release 2>/dev/null || [ "$$(id -u)" != 0 ] || \
		(apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium >/dev/null) || \
		echo "Chromium could not be installed; the tests of the report are skipped."

lock:
	$(UV) pip compile --quiet --universal --python-version 3.11 --group dev \
		--no-header --no-emit-index-url --no-annotate pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest demo-run
