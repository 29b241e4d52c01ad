PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-processes test-all lint docs site coverage notebooks wheel oldest newest audit

install: .venv/.installed

# One full environment: both distributions, their extras and the test tools, pinned.
.venv/.installed: pyproject.toml bench/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" -e "./bench[images,ensembles]"
	touch $@

demo: install
	$(BIN)/autobalance demo --out demo-run --overwrite

# Two workers of one thread each: small networks gain nothing from more threads.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not processes"
	cd bench && OMP_NUM_THREADS=1 ../$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not processes"

# What starts, kills or resumes processes and takes over 5 seconds each.
test-processes: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "processes and not slow and not gpu"
	cd bench && OMP_NUM_THREADS=1 ../$(BIN)/python -m pytest -n 2 -m "processes and not slow and not gpu"

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu"
	cd bench && OMP_NUM_THREADS=1 ../$(BIN)/python -m pytest -n 2 -m "not gpu"
	$(MAKE) wheel oldest newest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# The site, with warnings as errors; its tutorials and snippets run.
docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# The same in a folder of its version, under docs/_build/site, with a page that leads to the newest.
site: install
	$(BIN)/python docs/make_site.py

# The tests with their coverage; the README's badges show what it keeps.
coverage: install
	$(BIN)/python bench/record_tests.py
	$(BIN)/python bench/figures.py --write

# The tutorials as notebooks, for Jupyter or Colab, under docs/_build/notebooks.
notebooks: install
	$(BIN)/python docs/make_notebooks.py

# Wheel and sdist of both distributions, checked, and tests against each in an environment of its own.
wheel: install
	.ci/wheel dist

# All tests but slow ones, with the oldest and the newest versions that pyproject.toml allows.
oldest:
	.ci/versions oldest

newest:
	.ci/versions newest

audit: install
	$(BIN)/python -m pip_audit -r constraints.txt --no-deps --disable-pip --strict
