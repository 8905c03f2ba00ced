# Two commands are all a fresh machine needs: `make demo` and `make test`. Both set up what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
CXX_SOURCES := $(shell find csrc -name '*.cc' -o -name '*.h') CMakeLists.txt setup.py

.PHONY: setup ext demo test test-cpp test-asan test-tsan test-python lint format stubs bench clean

setup: $(STAMPS)/built

$(STAMPS)/deps: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# The lock names every package, so pip resolves nothing.
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/built: $(STAMPS)/deps $(CXX_SOURCES)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Rebuilds only what changed in the extension module; the lock keeps two callers apart.
ext:
	PATH="$(abspath $(BIN)):$$PATH" flock build/.lock sh -c '\
	    build=build/python$$(python -c "import sys; print(*sys.version_info[:2], sep=\".\")") && \
	    cmake -B $$build -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/headrace > /dev/null && \
	    cmake --build $$build --target _core'

demo: setup
	$(BIN)/python examples/demo/run.py

test: test-cpp test-asan test-tsan test-python

# $(call cpp_tests,build folder,sanitizer)
define cpp_tests
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(1) -G Ninja -DHEADRACE_PYTHON=OFF -DHEADRACE_TESTS=ON -DHEADRACE_SANITIZE=$(2) > /dev/null
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(1) --target headrace_tests
	$(1)/headrace_tests
endef

test-cpp: $(STAMPS)/deps
	$(call cpp_tests,build/cpp,)

test-asan: $(STAMPS)/deps
	$(call cpp_tests,build/cpp-asan,address)

test-tsan: $(STAMPS)/deps
	$(call cpp_tests,build/cpp-tsan,thread)

test-python: setup
	$(BIN)/python -m pytest

lint: $(STAMPS)/deps
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cc' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(STAMPS)/deps
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.cc' '*.h' | xargs $(BIN)/clang-format -i

# The stub of the extension module; tests fail where it is out of date.
stubs: setup
	$(BIN)/pybind11-stubgen headrace._core -o python --exit-code
	$(BIN)/ruff format -q python/headrace/_core.pyi

bench: setup
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf build $(STAMPS)
