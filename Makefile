# `make demo` and `make test` each make what they need, from nothing but Python 3.11-3.13 and pip.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
# Of twenty thousand files a run imports a quarter: they are compiled when they are first imported, not all of them now.
INSTALL := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
# Everything the project runs on is inside it: a call that would reach for the hub should fail at once.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# Two stamps in one environment: the demo does not wait for the developers' tools.
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# Two pips in one environment at once would break it.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help install demo test check format pins clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z]*\):.*## /make \1   /p' $(MAKEFILE_LIST)

install: $(DEV_STAMP)  ## make the environment, with the developers' tools

demo: $(USER_STAMP)  ## diff the bundled pair against its nulls and write a report (offline)
	@$(OFFLINE) $(PY) -m finetrace demo $(ARGS)

# Two processes, one thread each, a file to each: fixtures of a module are made once, documents run in their order.
test: $(DEV_STAMP)  ## run the tests, offline (ARGS='tests/stats -k holm' for some of them)
	@$(OFFLINE) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(DEV_STAMP)  ## lint, formatting, types, and which room may import which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

format: $(DEV_STAMP)  ## put the code in the house's form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

pins: $(DEV_STAMP)  ## renew constraints.txt from the environment
	@$(PY) -m pip freeze --exclude-editable | sed -n 's/^\([^ @+]*==[^+ ]*\).*/\1/p' \
	  | grep -v -i -E '^(torch|nvidia|triton|cuda)[-=]|^nvidia|^cuda' | LC_ALL=C sort -f > $(VENV)/pins
	@{ grep '^#' constraints.txt; grep '^torch==' constraints.txt; cat $(VENV)/pins; } > $(VENV)/constraints
	@mv $(VENV)/constraints constraints.txt && rm $(VENV)/pins

clean:  ## remove the environment and what the tools cached
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(PY):
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# pip, not uv: uv does not read pip's configured find-links, so where those offer a CPU build of torch
# it would fetch the CUDA one instead.
$(USER_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "Installing finetrace into $(VENV) (the first time takes a minute or two)"
	@$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "Installing finetrace and its developers' tools into $(VENV) (the first time takes a minute or two)"
	@$(INSTALL) -e '.[dev]'
	@touch $(USER_STAMP) $@
