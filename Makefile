# make demo      compress a real trained classifier and see what it was worth
# make test      everything that CI runs: lint, format, types, import contract, docs, tests
# make coverage  the tests, and by file which lines of the package none of them runs
# make docs      the documentation as a site, in site/; what leads nowhere in it is an error
# make lowest    the tool from a wheel on the lowest versions that pyproject.toml allows, in a folder of its own
# All but the last set up .venv from nothing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test pytest coverage lint windows docs lowest clean readme

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh fixtures/demo.sh

test: $(INSTALLED)  # side by side: the type checker takes a minute of one core
	$(MAKE) --no-print-directory --jobs=3 lint docs pytest

PYTEST = $(BIN)/python -m pytest -p tests.support.line_coverage -n auto --dist worksteal --durations=30

pytest: $(INSTALLED)
	$(PYTEST)

coverage: $(INSTALLED)
	$(PYTEST) --missing-lines

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

windows: $(INSTALLED)  # what is typed for a platform that has no fcntl and no resource
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

LOWEST = import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(need.replace(">=", "==") for need in project["dependencies"]))

lowest:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m venv "$$folder/venv" && mkdir "$$folder/run" && \
	"$$folder/venv/bin/pip" install --quiet --disable-pip-version-check $$($(PYTHON) -c '$(LOWEST)') . && \
	PATH="$$folder/venv/bin:$$PATH" sh fixtures/smoke.sh "$$folder/run"

clean:
	rm -rf .venv demo site

readme: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python fixtures/readme.py
