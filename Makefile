# Two commands are all a fresh machine needs: `make demo` and `make test`. Both set up what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
# ninja and cmake come with the environment. Each ninja fills the machine, whatever is built beside it, and makes room for
# tests that run there.
CMAKE := nice env -u MAKEFLAGS PATH="$(abspath $(BIN)):$$PATH" cmake
# Where setup.py builds the extension module.
EXT_BUILD = build/python$(shell $(BIN)/python -c 'import sys; print(*sys.version_info[:2], sep=".")')
CXX_SOURCES := $(shell find csrc -name '*.cc' -o -name '*.h') CMakeLists.txt setup.py

.PHONY: setup ext demo test untimed untimed-extension timed build-cpp build-asan build-tsan test-cpp
.PHONY: test-cuda-host test-cuda-build gpu-test test-neon test-asan test-tsan test-python lint format stubs protos
.PHONY: bench bench-kernels bench-ops chaos clean

setup: $(STAMPS)/built

# What a Python of a distribution may lack, told before half of a virtual environment is made.
define HAS_WHAT_BUILDS
import os, sys, sysconfig
try: import venv, ensurepip
except ImportError as error: sys.exit(f"$(PYTHON): got {error}, expected the module: apt install python3-venv (or your system's like)")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
os.path.isfile(header) or sys.exit(f"$(PYTHON): got no {header}, expected it: apt install python3-dev (or your system's like)")
endef
export HAS_WHAT_BUILDS

# What builds the C++ core: there in seconds, where the rest takes two minutes.
$(STAMPS)/tools: requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -c "$$HAS_WHAT_BUILDS"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	grep -E '^(cmake|ninja)==' requirements.lock | $(BIN)/python -m pip install --quiet --no-deps -r /dev/stdin
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/deps: requirements.lock | $(STAMPS)/tools
	# The lock names every package, so pip resolves nothing.
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	touch $@

$(STAMPS)/built: $(STAMPS)/deps $(CXX_SOURCES)
	@echo "building the extension module (a few minutes the first time)"
	# Without kernels for GPUs, which take nvcc more than a minute: `make test-cuda-build` adds them.
	HEADRACE_CUDA=$${HEADRACE_CUDA:-off} nice env -u MAKEFLAGS $(BIN)/python -m pip install --quiet --no-deps \
	  --no-build-isolation -e .
	touch $@

# Rebuilds only what changed in the extension module; the lock keeps two callers apart. Where nothing was built yet, or all was
# cleaned away, everything is set up first.
ext: $(if $(wildcard build/python*/build.ninja),,setup)
	flock build/.lock $(CMAKE) -B $(EXT_BUILD) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/headrace > /dev/null
	flock build/.lock $(CMAKE) --build $(EXT_BUILD) --target _core

demo: setup
	$(BIN)/python examples/demo/run.py

# First everything that is built and the tests that nothing disturbs, two at a time, since most leave a core idle at some
# time; then, one after the other, the tests in which something has to happen in time. CI has the style checked beside the
# former.
test:
	$(MAKE) --jobs=2 --output-sync=target untimed
	$(MAKE) timed

untimed: untimed-extension test-neon build-asan build-tsan

# What shares the extension's build folder, one after the other.
untimed-extension: setup
	$(MAKE) test-cuda-host
	$(MAKE) build-cpp
	$(MAKE) test-cuda-build

timed:
	$(MAKE) --jobs=1 test-cpp test-asan test-tsan test-python

# The unit tests of the C++ core. They share the extension's build folder, and so all of its objects.
build-cpp: setup
	$(CMAKE) -B $(EXT_BUILD) -DHEADRACE_TESTS=ON > /dev/null
	$(CMAKE) --build $(EXT_BUILD) --target headrace_tests headrace_planted

test-cpp: build-cpp
	$(EXT_BUILD)/headrace_tests

# The same of what has kernels for the architecture that this machine is not, under qemu.
test-neon: $(STAMPS)/tools
	nice env -u MAKEFLAGS PATH="$(abspath $(BIN)):$$PATH" tests/cpp/emulated.sh

# The logic of the CUDA kernels, compiled by the C++ compiler and run on the host under sanitizers: op by op, then
# whole Models from Python, into which the sanitizers have to be loaded first.
CUDA_ON_HOST = $(EXT_BUILD)/tests/cpp/cuda
test-cuda-host: setup
	$(CMAKE) -B $(EXT_BUILD) -DHEADRACE_TESTS=ON > /dev/null
	$(CMAKE) --build $(EXT_BUILD) --target headrace_cuda_tests _cuda_on_host
	$(CUDA_ON_HOST)/headrace_cuda_tests
	HEADRACE_CUDA_ON_HOST=$(CURDIR)/$(CUDA_ON_HOST)/python ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest -q -p no:xdist -o addopts= tests/cuda/test_on_host.py

# The same sources by nvcc, for real GPUs; where there is no nvcc, this says so and is done.
test-cuda-build: setup
	@command -v nvcc > /dev/null || { echo "no nvcc on PATH: nothing was compiled for CUDA"; exit 0; } && \
	  $(CMAKE) -B $(EXT_BUILD) -DHEADRACE_CUDA=on -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/headrace > /dev/null && \
	  $(CMAKE) --build $(EXT_BUILD) --target _cuda && \
	  $(BIN)/python -c "import headrace._cuda as m; print(len(m.ops()), 'ops have CUDA kernels')"

# Conformance, batch invariance and speed on a real GPU, into build/gpu-report.md; says so where there is none.
gpu-test: test-cuda-build
	$(BIN)/python -m tests.cuda

# $(call sanitized_tests,sanitizer,more options of CMake) builds them in build/cpp-<sanitizer>.
define sanitized_tests
	$(CMAKE) -S . -B build/cpp-$(1) -G Ninja -DHEADRACE_PYTHON=OFF -DHEADRACE_TESTS=ON -DHEADRACE_SANITIZE=$(1) $(2) > /dev/null
	$(CMAKE) --build build/cpp-$(1) --target headrace_tests
endef

build-asan: $(STAMPS)/tools
	$(call sanitized_tests,address,)

test-asan: build-asan
	# In two processes side by side, but for what waits for something to happen in time.
	build/cpp-address/headrace_tests --without @batcher --part 1/2 & first=$$!; \
	  build/cpp-address/headrace_tests --without @batcher --part 2/2; second=$$?; wait $$first && exit $$second
	build/cpp-address/headrace_tests @batcher

# Only what has threads of its own, and the ops that its tests run: ops run inside the pool and share nothing but their
# outputs.
TSAN_FILES := main|heap|core_test|runtime_test|row_chain_test|batcher.*
TSAN_ROOMS := activation;elementwise;linear;norm;shape;softmax
build-tsan: $(STAMPS)/tools
	$(call sanitized_tests,thread,"-DHEADRACE_TEST_FILES=$(TSAN_FILES)" "-DHEADRACE_ROOMS=$(TSAN_ROOMS)" -DHEADRACE_REFERENCE_ONLY=ON)

test-tsan: build-tsan
	build/cpp-thread/headrace_tests

# Processes that run Python tests side by side; tests/conftest.py shares them out. 0 for one, where a debugger works.
JOBS ?= 2
test-python: setup
	$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

lint: $(STAMPS)/deps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cc' '*.cu' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(STAMPS)/deps
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cc' '*.cu' '*.h' | xargs $(BIN)/clang-format -i

# The stub of the extension module; tests fail where it is out of date.
stubs: setup
	$(BIN)/pybind11-stubgen headrace._core -o python --exit-code
	$(BIN)/ruff format -q python/headrace/_core.pyi

# The descriptors of the gRPC messages; tests fail where they are out of date.
protos: $(STAMPS)/deps
	$(BIN)/python -m grpc_tools.protoc -I python/headrace/serving --descriptor_set_out=python/headrace/serving/oip.desc oip.proto

# The programs headrace_bench_* in build/python3.*, each of which times one kind of kernel.
bench-kernels: setup
	$(CMAKE) -B $(EXT_BUILD) -DHEADRACE_BENCH=ON > /dev/null
	$(CMAKE) --build $(EXT_BUILD) --target headrace_bench_kernels

# Everything docs/performance.md quotes, and its tables; an hour or less on two quiet cores. BENCH="--only minilm --quick"
# passes options on. Peers that nothing else needs are installed here and nowhere else.
bench: bench-kernels $(STAMPS)/bench-peers
	$(BIN)/python -m benchmarks $(BENCH)

$(STAMPS)/bench-peers: benchmarks/requirements.lock $(STAMPS)/deps
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements.lock
	touch $@

# Campaigns against a running server and a deployment on Ray, each in its full length: 70 minutes, of which the soaks take an
# hour. CHAOS="overload --seed 7 --seconds 120" for one of them.
chaos: setup
	$(BIN)/python -m tests.chaos $(CHAOS)

# The kernels and the scheduler under pytest-benchmark, to compare commits.
bench-ops: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf build $(STAMPS)
