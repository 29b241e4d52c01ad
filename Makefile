PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-all lint

install: .venv/.installed

# One full environment: the package, its extras and the test tools, pinned.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/autobalance demo --out demo-run --overwrite

# Two workers of one thread each: small networks gain nothing from more threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
