# Everything runs in .venv, made from the hash-pinned lock files.  `make help` lists the targets.
# The lock files are complete, so --no-deps: else pip looks for newer releases of what an extra names, and has no hash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint build wheels catalogue differential fuzz conformance lock clean

COMPILER = command -v cc >/dev/null && \
	test -f "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.runtime: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Grille needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(VENV)/.runtime  ## the main job, end to end, on a real PostgreSQL; ends by itself
	@{ $(COMPILER); } || echo "no C compiler with Python's headers: the pure-Python build is used"
	$(BIN)/python -m grille demo

test: $(VENV)/.dev  ## lint, types, import rules and the test suite
	@$(MAKE) --no-print-directory lint
	GRILLE_PLAIN=1 $(BIN)/python -m pytest -q

coverage: $(VENV)/.dev  ## the test suite with the lines that it does not reach
	GRILLE_PLAIN=1 $(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered

build: $(VENV)/.dev  ## compile the hot path in place; without a compiler it says so and leaves the plain build
	@if $(COMPILER); then \
		$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2; \
	else \
		echo "no C compiler with Python's headers: the pure-Python build stays in use"; \
	fi
	@$(BIN)/python -c "import grille; print('build:', grille.build())"

wheels: $(VENV)/.dev  ## dist/plain and dist/compiled: a wheel of each build
	GRILLE_PLAIN=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/plain .
	rm -rf build
	@if $(COMPILER); then \
		$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/compiled .; \
	else \
		echo "no C compiler with Python's headers: no compiled wheel"; \
	fi
	@rm -rf build; ls dist/*

catalogue: $(VENV)/.dev  ## every known way around the window, tried on PostgreSQL 15 and 18
	GRILLE_PLAIN=1 $(BIN)/python -m tests.catalogue

differential: $(VENV)/.dev  ## [N=statements] [SEED=n]: generated statements through Grille and under native row security
	GRILLE_PLAIN=1 $(BIN)/python -m tests.differential --statements $(or $(N),6000) --seed $(or $(SEED),1)

fuzz: $(VENV)/.dev  ## [SECONDS=n]: random bytes, frames and statements against parsers, states and plan builder
	GRILLE_PLAIN=1 $(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

conformance: $(VENV)/.dev  ## SUITE=name [POLICY=passthrough|governed]: other people's tests, directly and through Grille
	$(BIN)/python -m tests.conformance $(SUITE) --policy $(or $(POLICY),passthrough)

lint: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## write the lock files anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra demo --extra pkcs11 pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra demo --extra pkcs11 --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean:  ## remove the virtual environment and what was built
	find grille -name '*.so' -delete; find grille -name '*.c' -delete
	rm -rf $(VENV) build dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
