# make            lists the targets
# make reproduce  environment, then the main job: all notebooks, then reports/index.html
# make test       environment, then the tests (ALL=1: those that train for long, too)
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test fuzz faults audit check lab app bench new-notebook clean

# The first Python that runs and is new enough; requirements.lock was resolved for 3.11.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
endif
ifdef UCORE_DATA  # notebooks and tests may run in other folders
export UCORE_DATA := $(abspath $(UCORE_DATA))
endif
BIN := .venv/bin
# JupyterLab would otherwise ask PyPI for a newer version, and Jupyter's site for news.
QUIET := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
# Nor does it ask whether it may.
LAB := .venv/share/jupyter/lab/settings
NEWS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}
STAMP := .venv/.complete
SCALE ?= tiny
export HF_HUB_DISABLE_TELEMETRY := 1
# Compiled modules are kept, in __pycache__: without them every process would compile torch anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

# uv builds the environment; where it is missing, it is put into .tools, and the user's Python stays as it is.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: install it, or repeat with make PYTHON=/path/to/python3.11"; exit 2; }
	@set -e; uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! $$uv --version >/dev/null 2>&1; then \
	  uv=.tools/bin/uv; \
	  if [ ! -x $$uv ]; then \
	    $(PYTHON) -m venv .tools 2>/dev/null && .tools/bin/python -m pip install -q uv || \
	    { rm -rf .tools; $(PYTHON) -m pip install -q --target .tools uv 2>/dev/null; } || \
	    { rm -rf .tools; echo "Could not install uv: this Python has neither venv nor pip. Install uv or python3-venv first."; exit 2; }; \
	  fi; \
	fi; \
	echo "Building .venv from requirements.lock (several GB; under a minute on a fast connection) ..."; \
	rm -rf .venv; \
	$$uv venv -q --python $(PYTHON) .venv; \
	$$uv pip sync -q --python $(BIN)/python --require-hashes requirements.lock; \
	$$uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	mkdir -p $(LAB); echo '$(NEWS)' > $(LAB)/overrides.json
	@touch $@
	@echo "Ready. For the ucore command: . .venv/bin/activate"

setup: $(STAMP)  ## build .venv from requirements.lock (skipped when it is up to date)

reproduce: $(STAMP)  ## run the notebooks end to end (SCALE=tiny|small|full; data from UCORE_DATA)
	@$(BIN)/ucore reproduce --scale $(SCALE)

# Long files first, as they are collected: xdist's own order would leave them to the end, one worker idle.
test: $(STAMP)   ## run the tests; ALL=1, as in CI: whole notebooks and trainings on hundreds of images as well
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(if $(ALL),,-m "not slow")

fuzz: $(STAMP)   ## damaged files for every reader (UCORE_FUZZ_CASES=10000 each; FUZZ=name for some)
	@UCORE_FUZZ_CASES=$${UCORE_FUZZ_CASES:-10000} $(BIN)/python tests/fuzz/run_fuzz.py

audit: $(STAMP)  ## known weaknesses of the locked packages, asked of PyPI's service by pip-audit
	@$(BIN)/python tests/audit.py

check: $(STAMP)  ## lint, format, types, stripped notebooks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --level error
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

lab: $(STAMP)    ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab $(QUIET) --MappingKernelManager.root_dir="$(CURDIR)" notebooks

app: $(STAMP)    ## search in the browser, in what notebook 08 indexed (or INDEX=folder)
	@$(BIN)/ucore app $(if $(INDEX),--index $(INDEX))

bench: $(STAMP)  ## every ratio that is claimed, measured now, as one table (a quarter of an hour)
	@$(BIN)/python benchmarks/claims.py

faults: $(STAMP) ## kill every stage 20 times and fill its disk 10 times; a table (half an hour; KILLS=20)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests/faults
	@$(BIN)/python tests/faults/table.py $(if $(KILLS),--kills $(KILLS))

new-notebook: $(STAMP)  ## a stub that runs and passes the tests (NAME=10_seasons)
	@$(BIN)/python -m ucore.new_notebook '$(NAME)'

clean:           ## remove what runs made; keeps the environment
	@rm -rf runs .pytest_cache .ruff_cache
