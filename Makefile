# make            lists the targets
# make reproduce  environment, then the main job
# make test       environment, then the tests
.DEFAULT_GOAL := help
.PHONY: help setup reproduce test check lab bench clean

PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.complete
SCALE ?= tiny
export HF_HUB_DISABLE_TELEMETRY := 1

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

# uv builds the environment; where it is missing, it is put into .tools, and the user's Python stays as it is.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it and repeat."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Repeat with: make PYTHON=/path/to/python3.11"; exit 2; }
	@set -e; uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! $$uv --version >/dev/null 2>&1; then \
	  uv=.tools/bin/uv; \
	  if [ ! -x $$uv ]; then \
	    $(PYTHON) -m venv .tools 2>/dev/null && .tools/bin/python -m pip install -q uv || \
	    { rm -rf .tools; $(PYTHON) -m pip install -q --target .tools uv; }; \
	  fi; \
	fi; \
	rm -rf .venv; \
	$$uv venv -q --python $(PYTHON) .venv; \
	$$uv pip sync -q --python $(BIN)/python --require-hashes requirements.lock; \
	$$uv pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

setup: $(STAMP)  ## build .venv from requirements.lock (skipped when it is up to date)

reproduce: $(STAMP)  ## run the notebooks end to end (SCALE=tiny|small|full; data from UCORE_DATA)
	@$(BIN)/ucore reproduce --scale $(SCALE)

test: $(STAMP)   ## run the tests
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(STAMP)  ## lint, types, stripped notebooks, lock in step with pyproject
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --level error
	@$(BIN)/nbstripout --verify notebooks/*.ipynb

lab: $(STAMP)    ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

bench: $(STAMP)  ## ratios measured side by side
	@$(BIN)/python benchmarks/feature_extraction.py

clean:           ## remove what runs made; keeps the environment
	@rm -rf runs .pytest_cache .ruff_cache
