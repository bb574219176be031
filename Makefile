# make demo   compress a real trained classifier and see what it was worth
# make test   everything that CI runs: lint, format, types, import contract, tests
# Both set up .venv from nothing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint clean readme

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh fixtures/demo.sh

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 & other=$$!; $(BIN)/mypy && wait $$other
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf .venv demo

readme: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python fixtures/readme.py
