# The habits of this project. Each sets up .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
KERNELS := $(wildcard src/spherescan/ops/kernels/*)
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-all check bench docs clean

demo: $(STAMP)  ## train and test the speaker classifier
	rm -rf runs/demo
	$(BIN)/spherescan train examples/japanese_vowels.toml --run.dir runs/demo
	$(BIN)/spherescan evaluate runs/demo sample:JapaneseVowels_TEST.ts

test: $(STAMP)  ## all tests but the slow ones, with the coverage floor
	$(BIN)/pytest -m "not slow" --cov --cov-report=term

test-all: $(STAMP)  ## the slow ones too
	$(BIN)/pytest --cov --cov-report=term

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## speed against the plain reference
	$(BIN)/python benchmarks/scan.py

docs: $(STAMP)  ## the API as HTML in build/docs
	$(BIN)/pdoc spherescan -o build/docs

clean:
	rm -rf .venv build dist

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(KERNELS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)
