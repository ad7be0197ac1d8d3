# make demo   set up, then export, verify, build and run a real checkpoint
# make test   set up, then pass the tests
# `make setup PLUGIN=OFF` leaves the TensorRT plugin out, where there is no CUDA compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGIN ?= ON
EXTRAS := onnxruntime,tensorrt-rtx,samples,dev
STAMP := $(VENV)/.installed-$(PLUGIN)
LEAN := $(addprefix .deps/tensorrt-lean/,10.15.1.29 11.4.0.106)
# The lowest version that pyproject.toml allows.
OLDEST := .deps/onnxruntime-$(shell sed -n 's/^onnxruntime = .*>=\([0-9.]*\)".*/\1.0/p' pyproject.toml)
SOURCES := $(shell find plugins -type f) pyproject.toml constraints.txt tools/fetch_headers.py
CXX_FILES := $(shell find plugins samples tests tools benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup demo test fuzz lint format bench gpu clean

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/python tools/fetch_headers.py
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]' \
	    --config-settings=cmake.define.POM_BUILD_TENSORRT=$(PLUGIN)
	touch $@

demo: setup
	$(BIN)/python samples/01_demo.py

# TensorRT's lean runtimes, which tests load the plugin into; without them these are skipped, but in CI.
$(LEAN): $(BIN)/python
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part \
	    tensorrt-lean-cu13-libs==$(@F) tensorrt-lean-cu13-bindings==$(@F) && mv $@.part $@ \
	    || echo "TensorRT's lean runtime $(@F) could not be fetched: the tests that need it are skipped" >&2

# The oldest ONNX Runtime, beside the one that is installed; without it tests are skipped, but in CI.
$(OLDEST): $(BIN)/python
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet --no-deps --target $@.part \
	    onnxruntime==$(@F:onnxruntime-%=%) && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

# A file of tests stays in one process: what its tests share is built once.
test: setup $(OLDEST) $(if $(filter ON,$(PLUGIN)),$(LEAN))
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Hostile files for every reader, others than the tests' own: `make fuzz SECONDS=3600 FORMATS='pt2 onnx'`.
fuzz: setup
	$(BIN)/python tools/fuzz.py $(if $(SECONDS),--seconds $(SECONDS)) $(addprefix --format ,$(FORMATS))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Everything side by side, into docs/benchmarks; on a machine on which nothing else runs. `make bench RUNS=layer-none`.
bench: setup
	$(BIN)/python -m benchmarks.project $(RUNS)

# What needs a CUDA device: tests, some of them under compute-sanitizer, then times, into docs/gpu.md, which also says
# what to install for all of these tests to run.
gpu: setup
	$(BIN)/python tools/check_gpu.py
	$(BIN)/python -m pytest -m 'gpu or tensorrt'
	for tool in memcheck racecheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -q -m gpu -k 'types or gate or steps' \
	        tests/plugins/cuda/test_kernels.py tests/plugins/cuda/test_gated_kernels.py \
	        tests/plugins/cuda/test_stateful_kernels.py || exit 1; \
	done
	$(BIN)/python -m benchmarks.cuda_kernels --page docs/gpu.md

clean:
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .mypy_cache
