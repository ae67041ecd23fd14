# wafergpt: every target sets up .venv when it is missing or older than pyproject.toml and constraints.txt.
#   make demo     pre-train a small Cerebras-GPT on real English, evaluate it, write a report
#   make test     the gate: lint, then every test that is not marked long
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := plots,data,hub,modelzoo,gguf,tasks,engines,tensorboard,test
# Two pytest workers share two cores, so each computes with one thread (tests that need more say so).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install demo base test test-long bench tasks bench-inference lint dist clean

help:
	@echo "make demo       pre-train a small Cerebras-GPT on real English (about ten minutes)"
	@echo "make base       pre-train the model that tasks are fine-tuned from (about an hour)"
	@echo "make install    set up .venv with everything, exact versions"
	@echo "make test       lint and the tests (about ten minutes on two cores)"
	@echo "make test-long  every test, the long ones and the docs' snippets in full too"
	@echo "make bench      every benchmark"
	@echo "make tasks      teach the base of make base every task, three seeds each, and write the table"
	@echo "make bench-inference  inference beside the best other engines, each in its own environment"
	@echo "make lint       ruff and mypy"
	@echo "make dist       wheel and sdist in dist/"
	@echo "make clean      remove what was built (not .venv, not your runs)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; install Python 3.11 or name one: make PYTHON=python3.12" >&2; \
	  exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: python3-venv is missing; install it: sudo apt-get install python3-venv (Debian, Ubuntu)" >&2; \
	  exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/wafergpt doctor
	@touch $@

demo: $(STAMP)
	$(BIN)/wafergpt quickstart

# Two test sets are published as source distributions only, and pip runs their setup code to download them.
base: $(STAMP)
	$(BIN)/wafergpt assets fetch --allow-sdist vader-sentences squad
	$(BIN)/wafergpt train base --out runs/base

test: lint
	WAFERGPT_SMOKE=1 $(PYTEST) -m 'not long'

test-long: lint
	$(PYTEST) -m ''

bench: $(STAMP)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

tasks: $(STAMP)
	$(BIN)/python benchmarks/tasks --base runs/base --out runs/tasks

bench-inference: $(STAMP)
	$(BIN)/python benchmarks/inference.py --models 111M 256M 590M 1.3B --quality --json-out

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
