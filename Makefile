# make report   the studies at preset quick: trains what isn't stored, writes reports/index.html
# make test     everything that can be checked, in two processes
# make lab      JupyterLab on localhost
# make docs     the documentation, in site/: open site/index.html
# Set-up happens by itself, in .venv. PYTHON and PIP_ARGS choose the interpreter and where packages come from.

PYTHON ?= python3
PIP_ARGS ?=
PRESET ?= quick
STUDIES ?= all
WORKERS ?= 0
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := report
.PHONY: report test lab docs readme export outputs lock hooks wheel clean

report: $(READY)
	$(BIN)/wavescat run $(STUDIES) --preset $(PRESET) --workers $(WORKERS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --durations=15 --durations-min=5

lab: $(READY)
	$(BIN)/jupyter lab --ip=127.0.0.1

# pages of the notebooks, studies and reports as they are stored: nothing is run, nothing fetched
docs: $(READY)
	$(BIN)/python -c 'from wavescat.apps.cli import app; from wavescat.apps.docs import build_docs; print(build_docs("site", app))'

# torch first, by its exact version: an open range would pull builds of several GB
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("wavescat needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "installing the locked packages into .venv (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $$(grep '^torch==' requirements.lock)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# the README's table of results, from the results beside the pages
readme: $(READY)
	$(BIN)/python -c 'from pathlib import Path; from wavescat.studies.index import readme; readme(Path("reports"), Path("README.md"))'

# notebooks, tests and tools formatted; notebooks cleaned; the package exported from them
export: $(READY)
	$(BIN)/ruff format nbs tests tools
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

# notebooks executed, and what new cells show is stored with them
outputs: $(READY)
	$(BIN)/python tools/outputs.py

# the versions that .venv has now become the locked ones, for pip and for conda
lock:
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock
	{ printf 'name: wavescat\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; sed 's/^/      - /' requirements.lock; printf '      - --editable .\n'; } > environment.yml

hooks: $(READY)
	git config core.hooksPath .hooks

wheel: $(READY)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
