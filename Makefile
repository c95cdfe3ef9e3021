# Everything runs from .venv, which each target makes for itself the first time.
#   PYTHON=python3.12     the interpreter to build .venv with
#   TORCH_ARGS="..."      extra pip arguments for torch alone, such as a CPU-only package index
#   BENCH="--quick"       arguments for both benchmarks of `make bench`
#   EXPERIMENTS="dlpm"    which of `make experiments`, default all
#   TRIALS="fuzz"         which of `make trials`, default all
#   OUT=somewhere/        where `make bench`, `make trials` and `make gpu` put their results and plots

PYTHON ?= python3
TORCH_ARGS ?=
BENCH ?=
EXPERIMENTS ?= $(filter-out lab report,$(patsubst experiments/%.py,%,$(filter-out experiments/_%,$(wildcard experiments/*.py))))
TRIALS ?= fuzz vanish timing faults soak
OUT ?= benchmarks/results

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
RECIPE := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint bench trials experiments docs gpu clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-run ## real requests behind shared prefixes, on the model that ships inside
	@$(BIN)/foreword demo

serve: $(VENV)/.stamp-serve ## OpenAI's API and the live page on the built-in model, at http://127.0.0.1:8000
	@$(BIN)/foreword serve nano

test: $(VENV)/.stamp-dev ## run the tests
	@$(BIN)/python -m pytest

lint: $(VENV)/.stamp-dev ## check style, types and the import law
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(VENV)/.stamp-bench ## measure attention and engine; results and plots go to OUT
	@mkdir -p $(OUT)
	@$(BIN)/foreword bench attention --out $(OUT) $(BENCH)
	@$(BIN)/foreword bench engine --out $(OUT) $(BENCH)

trials: $(VENV)/.stamp-dev ## the server under load, faults and hostile clients; half an hour; TRIALS=names
	@mkdir -p $(OUT)
	@for name in $(TRIALS); do \
	  $(BIN)/python -m benchmarks.server.$$name --out $(OUT)/server-$$name.json || exit 1; done

experiments: $(VENV)/.stamp-run ## test the published claims, each in minutes; EXPERIMENTS=names
	@for name in $(EXPERIMENTS); do $(BIN)/python -m experiments.$$name || exit 1; done
	@$(BIN)/python -m experiments.report --write

docs: $(VENV)/.stamp-docs ## build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: open site/index.html"

gpu: $(VENV)/.stamp-dev $(VENV)/.stamp-bench ## on a CUDA machine: its tests, then its benchmarks
	@$(BIN)/python -m pytest -m gpu
	@mkdir -p $(OUT)
	@$(BIN)/foreword bench attention --device cuda --quick --out $(OUT)
	@$(BIN)/python -m benchmarks.training.gpu --out $(OUT)/training-gpu.json

clean: ## remove caches and built docs (`rm -rf .venv` removes the rest)
	@rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is written last, so a set-up that was interrupted starts again.
$(VENV)/.stamp-run: $(RECIPE)
	@echo "setting up $(VENV) (once; a minute or more, most of it is PyTorch)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "Foreword needs Python 3.10 or newer, this is " + sys.version.split()[0] + \
	  ": name another one with `make PYTHON=...`")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch $(TORCH_ARGS)
	@$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "adding the tests' and linters' packages (once)" >&2
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.stamp-serve: $(VENV)/.stamp-run
	@echo "adding the server's packages (once)" >&2
	@$(PIP) -e '.[serve]'
	@touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-run
	@echo "adding the benchmarks' packages (once)" >&2
	@$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-run
	@echo "adding the documentation's packages (once)" >&2
	@$(PIP) -e '.[docs]'
	@touch $@
