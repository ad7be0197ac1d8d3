# make demo   set up, then export, verify, build and run a real checkpoint
# make test   set up, then pass the tests; `make test-all`: also those that are slow or need other runtimes
# make docs   the documentation as a site, into site/
# make wheel  into dist/, for every GPU architecture, to be installed where there is no compiler
# Each takes PLUGIN=OFF, which leaves the TensorRT plugin out, where there is no CUDA compiler.

comma := ,
PYTHON ?= python3
# Both ends of the supported versions: see test-oldest.
PYTHON_OLDEST ?= $(PYTHON) tools/find_python.py 3.10
PYTHON_NEWEST ?= $(PYTHON) tools/find_python.py 3.13
VENV := .venv
BIN := $(VENV)/bin
PLUGIN ?= ON
CREATED := $(VENV)/.created
PACKAGES := $(VENV)/.packages-$(PLUGIN)
LIBRARIES := pom_export/lib/.compiled-$(PLUGIN)
EXTRAS := onnxruntime$(if $(filter ON,$(PLUGIN)),$(comma)tensorrt-rtx)
LEAN := $(addprefix .deps/tensorrt-lean/,10.15.1.29 11.4.0.106)
# The lowest version that pyproject.toml allows.
OLDEST := .deps/onnxruntime-$(shell sed -n 's/^onnxruntime = .*>=\([0-9.]*\)".*/\1.0/p' pyproject.toml)
# Other runtimes that files are verified on: of the version in constraints.txt, and a package for JavaScript.
OPENVINO := .deps/openvino-$(shell sed -n 's/^openvino==//p' constraints.txt)
GENAI := .deps/onnxruntime-genai-$(shell sed -n 's/^onnxruntime-genai==//p' constraints.txt)
JAVASCRIPT := .deps/onnxruntime-web-1.30.0
# Triton's server for packages, its client, and the NumPy that it exchanges arrays with.
TRITON := .deps/nvidia-pytriton-0.7.0 .deps/numpy-1.26.4
TRITON_CLIENT := .deps/tritonclient-2.73.0
SOURCES := $(shell find plugins -type f) tools/build_libraries.py tools/fetch_headers.py
CXX_FILES := $(shell find plugins samples tests tools benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Without .pyc files for all of torch: those of what is imported are written then, also where the environment forbids it,
# as container images often do. Every process would compile torch anew, which takes longer than exporting a model.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python tools/progress.py packages $(BIN)/python -m pip install --no-compile --progress-bar off \
    --disable-pip-version-check --constraint constraints.txt

# Into a folder of its own, beside what is installed: a package with all that it needs, or alone.
PIP_ASIDE := $(BIN)/python tools/progress.py runtimes $(BIN)/python -m pip install --no-compile --progress-bar off \
    --disable-pip-version-check --target
PIP_ALONE := $(PIP_ASIDE:--target=--no-deps --target)

# One thing after the other, also with --jobs; but `setup` calls make again for what can be done side by side.
ifeq ($(MAKELEVEL),0)
.NOTPARALLEL:
endif

.PHONY: setup dev demo browser test test-all test-oldest test-newest wheel docs fuzz lint format bench gpu clean

# The packages are downloaded while the libraries are compiled.
setup: $(CREATED)
	@$(MAKE) --silent --no-print-directory --jobs=2 $(PACKAGES) $(LIBRARIES)

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("pom-export needs Python 3.10 or newer, and %s is \
	Python %s: name another one, as in `make demo PYTHON=python3.12`" % (sys.executable, sys.version.split()[0]))'
	@$(PYTHON) tools/build_libraries.py --check --plugin $(PLUGIN)
	@$(PYTHON) tools/progress.py environment $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(PACKAGES): $(CREATED) pyproject.toml constraints.txt
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(LIBRARIES): $(CREATED) $(SOURCES)
	@$(BIN)/python tools/build_libraries.py --plugin $(PLUGIN)
	@touch $@

# What else pyproject.toml lists: test, lint, ...
$(VENV)/.packages-for-%: pyproject.toml constraints.txt | $(PACKAGES)
	@$(PIP) --editable '.[$*]'
	@touch $@

dev: setup $(VENV)/.packages-for-test $(VENV)/.packages-for-lint

demo: setup
	@$(BIN)/python samples/01_demo.py

# The demo's model in a browser: serves the page, and prints its address.
browser: setup $(JAVASCRIPT)
	@$(BIN)/python samples/10_browser/serve.py --packages $(JAVASCRIPT)

# TensorRT's lean runtimes, which tests load the plugin into; without them these are skipped, but in CI.
$(LEAN): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ALONE) $@.part \
	    tensorrt-lean-cu13-libs==$(@F) tensorrt-lean-cu13-bindings==$(@F) && mv $@.part $@ \
	    || echo "TensorRT's lean runtime $(@F) could not be fetched: the tests that need it are skipped" >&2

# The oldest ONNX Runtime, beside the one that is installed; without it tests are skipped, but in CI.
$(OLDEST): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ALONE) $@.part onnxruntime==$(@F:onnxruntime-%=%) && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

$(OPENVINO): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ALONE) $@.part openvino==$(@F:openvino-%=%) && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

# NVIDIA's package contains the server; there are wheels of this NumPy up to Python 3.12.
$(TRITON): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ALONE) $@.part $(patsubst numpy-%,numpy==%,$(patsubst nvidia-pytriton-%,nvidia-pytriton==%,$(@F))) && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

$(TRITON_CLIENT): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ASIDE) $@.part 'tritonclient[grpc,http]==$(@F:tritonclient-%=%)' && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

$(GENAI): | $(CREATED)
	@rm -rf $@ $@.part
	@$(PIP_ALONE) $@.part onnxruntime-genai==$(@F:onnxruntime-genai-%=%) && mv $@.part $@ \
	    || echo "$(@F) could not be fetched: the tests that need it are skipped" >&2

$(JAVASCRIPT):
	@rm -rf $@ $@.part && mkdir -p $@.part
	@npm install --silent --no-audit --no-fund --ignore-scripts --prefix $@.part \
	    onnxruntime-web@$(@F:onnxruntime-web-%=%) >/dev/null && mv $@.part $@ \
	    || echo "$(@F) could not be fetched by npm: the tests that need it are skipped" >&2

# Each process begins with a stretch of files, whose shared fixtures it makes once, and ends with what others have left.
IN_PARALLEL := -n auto --maxprocesses 4 --dist worksteal
PYTEST := $(BIN)/python -m pytest $(IN_PARALLEL)

test: setup $(VENV)/.packages-for-test
	$(PYTEST) -m 'not slow'

test-all: setup $(VENV)/.packages-for-test,ray $(OLDEST) $(OPENVINO) $(GENAI) $(JAVASCRIPT) \
    $(TRITON) $(TRITON_CLIENT) $(if $(filter ON,$(PLUGIN)),$(LEAN))
	$(PYTEST)

# A part of the tests at both ends of the supported versions: the lowest that pyproject.toml accepts, and those of
# constraints.txt with the newest Python. Each has an environment of its own: about 3 GB to download and 5 GB of disk,
# since an index has torch for these only with CUDA. What old packages say of each other's future does not fail a test.
TESTS_OF_ENDS := tests/test_api.py tests/test_torch_modes.py tests/test_torch_patches.py tests/graph/test_schema.py \
    tests/graph/test_tracing.py tests/mixer tests/runtime/test_providers.py tests/runtime/test_session.py \
    tests/runtime/streaming tests/engine/test_builder.py tests/checkpoint/test_exported_program.py
INSTALL_END = $(@D)/bin/python tools/progress.py $(@D:.venv-%=%) $(@D)/bin/python -m pip install --no-compile \
    --progress-bar off --disable-pip-version-check --editable '.[onnxruntime,tensorrt-rtx,text]' \
    hypothesis pytest pytest-xdist --constraint
TEST_END = -m pytest $(IN_PARALLEL) -m 'not slow' $(TESTS_OF_ENDS)

.venv-oldest/.packages: pyproject.toml constraints-oldest.txt
	@$(PYTHON_OLDEST) -m venv --clear $(@D)
	@$(INSTALL_END) constraints-oldest.txt
	@touch $@

.venv-newest/.packages: pyproject.toml constraints.txt
	@$(PYTHON_NEWEST) -m venv --clear $(@D)
	@$(INSTALL_END) constraints.txt
	@touch $@

test-oldest: $(LIBRARIES) .venv-oldest/.packages
	.venv-oldest/bin/python $(TEST_END) -W ignore::DeprecationWarning -W ignore::UserWarning

test-newest: $(LIBRARIES) .venv-newest/.packages
	.venv-newest/bin/python $(TEST_END)

wheel: $(VENV)/.packages-for-wheel
	@$(BIN)/python tools/build_wheel.py --plugin $(PLUGIN)

# Fails on a link or a name that leads nowhere. Commands and Python's reference are read from the code.
docs: $(PACKAGES) $(VENV)/.packages-for-docs
	$(BIN)/python tools/docs_pages.py
	$(BIN)/zensical build --strict --clean

# Hostile files for every reader, others than the tests' own: `make fuzz SECONDS=3600 FORMATS='pt2 onnx'`.
fuzz: setup $(VENV)/.packages-for-test
	$(BIN)/python tools/fuzz.py $(if $(SECONDS),--seconds $(SECONDS)) $(addprefix --format ,$(FORMATS))

lint: $(VENV)/.packages-for-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.packages-for-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Everything side by side, into docs/benchmarks; on a machine on which nothing else runs. `make bench RUNS=layer-none`.
bench: setup $(VENV)/.packages-for-bench
	$(BIN)/python -m benchmarks project $(RUNS)

# What needs a CUDA device: tests, some of them under compute-sanitizer, then times, into docs/gpu.md, which also says
# what to install for all of these tests to run.
gpu: setup $(VENV)/.packages-for-test
	$(BIN)/python tools/check_gpu.py
	$(BIN)/python -m pytest -m 'gpu or tensorrt'
	for tool in memcheck racecheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -q -m gpu -k 'types or gate or steps' \
	        tests/plugins/cuda/test_kernels.py tests/plugins/cuda/test_gated_kernels.py \
	        tests/plugins/cuda/test_stateful_kernels.py || exit 1; \
	done
	$(BIN)/python -m benchmarks.cuda_kernels --page docs/gpu.md

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest pom_export/lib build dist out site .cache .pytest_cache .ruff_cache .mypy_cache
