# Every target sets up what it needs in .venv; a second call finds it there. PYTHON=... chooses the interpreter: the first
# here that runs (a shim may be there without running) and is new enough.
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# Processes that run test files side by side.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-toolkits lint bench bench-models bench-onnx docs docs-links clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: $(STAMPS)/demo ## sparsify a network trained on handwritten digits; prints tables, saves a picture and an HTML report
	$(BIN)/sisopt demo

test: lint ## lint, type check and the test suite
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile

test-toolkits: .venv-toolkits ## adapters against the other toolkits, in an environment of their own
	OMP_NUM_THREADS=1 .venv-toolkits/bin/python -m pytest tests/test_toolkits_*.py

lint: $(STAMPS)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMPS)/quality ## speed, scaling, errors of pruned layers, rivals beside all; tables in out/*.md
	$(BIN)/python -m pytest bench --ignore=bench/bench_models.py --ignore=bench/bench_onnx.py -s --benchmark-columns=min,median,stddev,rounds

bench-models: $(STAMPS)/models ## trained models of four domains pruned whole, rivals beside; table in out/models.md
	$(BIN)/python -m pytest bench/bench_models.py -s

bench-onnx: $(STAMPS)/models ## ONNX models of PyPI made sparse, from file to file; table in out/onnx.md
	$(BIN)/python -m pytest bench/bench_onnx.py -s

docs: $(STAMPS)/docs ## the documentation, into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

docs-links: $(STAMPS)/docs ## check all links of the documentation
	$(BIN)/python -m sphinx -W --keep-going -b linkcheck docs docs/_build/linkcheck

clean: ## remove what the targets build, .venv excepted
	rm -rf build dist out docs/_build .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find sisopt tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Bytecode comes with the first import, of what is imported, which halves the time of an installation; where Python may not
# write it then, pip does.
NO_COMPILE = $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

# Whole models, and networks that benches train, need torch: a build without CUDA where there is one, of a version that fixes
# their bits.
$(STAMPS)/cpu-torch: | $(STAMPS)/venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(NO_COMPILE) --retries 1 --timeout 15 \
		--extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0'
	@touch $@

# llm-compressor brings much, and holds back some of what the others need.
.venv-toolkits: pyproject.toml | $(STAMPS)/venv
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -qq --disable-pip-version-check --retries 1 --timeout 15 \
		--extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0'
	$@/bin/python -m pip install -qq --disable-pip-version-check \
		--editable '.[sklearn,torch-pruning,llm-compressor]' 'pytest>=8.2'
	@touch $@

$(addprefix $(STAMPS)/,dev docs models quality): | $(STAMPS)/cpu-torch

# One stamp per extra: installed again only when pyproject.toml changes.
$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo 'sisopt needs Python >= 3.11 with venv: make PYTHON=/path/to/python ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(@D) && touch $@

$(STAMPS)/%: pyproject.toml | $(STAMPS)/venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(NO_COMPILE) --editable '.[$*]'
	@touch $@
