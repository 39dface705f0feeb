# The habits of this project. Each sets up .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
KERNELS := $(wildcard src/spherescan/ops/kernels/*)
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-all check collect bench sanitize torture docs clean

demo: $(STAMP)  ## train and test the speaker classifier, and write a page about it
	rm -rf runs/demo
	$(BIN)/spherescan train examples/japanese_vowels.toml --run.dir runs/demo
	$(BIN)/spherescan evaluate runs/demo sample:JapaneseVowels_TEST.ts
	$(BIN)/spherescan report runs/demo sample:JapaneseVowels_TEST.ts

# Two workers share the cores. Byte code is there: a test whose disk is full must not leave half a module.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE = 1
test: $(STAMP)  ## all tests but the slow ones, with the coverage floor
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" --cov --cov-report=term

test-all: $(STAMP)  ## the slow ones too
	$(BIN)/pytest --cov --cov-report=term

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

collect: export PYTHONDONTWRITEBYTECODE =
collect: $(STAMP)  ## all tests are found; leaves their byte code as pytest wants it
	@$(BIN)/pytest --collect-only >build/collected.txt || { cat build/collected.txt; exit 1; }

bench: $(STAMP)  ## speed and memory against everyone else who is installed
	$(INSTALL) --editable ".[bench]"
	$(BIN)/spherescan bench --json benchmarks/results.json --plot benchmarks/step.svg

SPLIT_512 ?= OFF
sanitize: $(STAMP)  ## the kernels' tests under the address and undefined-behaviour sanitizers
	cmake -S . -B build/sanitize -DSPHERESCAN_SANITIZE=ON -DSPHERESCAN_SPLIT_512=$(SPLIT_512)
	cmake --build build/sanitize --parallel
	SPHERESCAN_LIBRARY=build/sanitize/_kernels.so LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 OMP_NUM_THREADS=1 \
	  $(BIN)/pytest tests/ops tests/features/test_native_fixed.py -m "not slow" -k "not compile and not openmp and not fork and not library"

TIER ?= full
torture: $(STAMP)  ## kills, faults, losses of power, fuzzing: an hour, or TIER=ci, TIER=release
	$(BIN)/python -m tests.torture --tier $(TIER)

docs: $(STAMP)  ## the API as HTML in build/docs
	$(BIN)/pdoc spherescan -o build/docs

clean:
	rm -rf .venv build dist

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(KERNELS)
	$(PYTHON) -m venv .venv
	@# The kernels are compiled while packages are fetched and unpacked, which leaves cores idle.
	$(INSTALL) --no-compile --no-deps --editable . & kernels=$$!; \
	  $(INSTALL) --no-compile torch && $(INSTALL) --no-compile --no-deps --requirement constraints.txt; \
	  packages=$$?; wait $$kernels && exit $$packages
	$(INSTALL) --no-compile "spherescan[dev]"  # what another platform needs beside them
	@# On all cores, where pip takes one; some packages hold templates that are no Python.
	@$(BIN)/python -c "import compileall, re; compileall.compile_dir('.venv/lib', quiet=2, workers=0, rx=re.compile('/tests/'))"
	@$(BIN)/python -m compileall -q src tests
	touch $(STAMP)
