#!/usr/bin/env bash
# Holds the kernels of the other architecture to the C++ tests: a machine with x86-64 cross-compiles them for aarch64,
# one with aarch64 for x86-64, and qemu-user runs them, once as a CPU that has all their instructions and once as one
# that has only the baseline's. (qemu knows AVX2 but not AVX-512.) Timing means nothing here.
#
# usage: tests/cpp/emulated.sh, with cmake and ninja in PATH. Builds in build/cpp-<architecture>.
# Debian's cross-compiler and qemu are installed where that needs no password; where they are not to be had, the script
# says so and succeeds: the machine's own architecture is tested by others.
set -euo pipefail
cd "$(dirname "$0")/../.."

case $(uname -m) in
  x86_64) arch=aarch64 package=g++-aarch64-linux-gnu baseline=cortex-a57 ;;
  aarch64) arch=x86_64 package=g++-x86-64-linux-gnu baseline=Nehalem ;;
  *) echo "SKIPPED the emulated C++ tests: nothing to cross-compile for on $(uname -m)" && exit ;;
esac
build=build/cpp-$arch
compiler=$arch-linux-gnu-g++
emulator=qemu-$arch

have_tools() { command -v "$compiler" > /dev/null && command -v "$emulator" > /dev/null; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
install_tools() {
  command -v apt-get > /dev/null && as_root true 2> /dev/null || return 0
  echo "installing $package and qemu-user"
  as_root apt-get update -qq || true
  as_root apt-get install -y -qq --no-install-recommends "$package" qemu-user > /dev/null || true
}
have_tools || install_tools
if ! have_tools; then
  echo "SKIPPED the emulated C++ tests for $arch: they need $compiler and $emulator" \
    "(Debian: apt-get install $package qemu-user)"
  exit
fi

# The files about what loops over vectors, and about chains of such ops.
files='activation|attention|conv|depthwise|element_chain|elementwise|image_chain|linear|low_precision'
files+='|low_precision_attention|norm|onnx_attention|quantize|reduce|row_chain|shape|simd_math|softmax'
files+='|static_int8|trees|winograd'
cmake -S . -B "$build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$arch \
  -DCMAKE_CXX_COMPILER=$compiler -DCMAKE_BUILD_TYPE=Emulated -DHEADRACE_PYTHON=OFF -DHEADRACE_TESTS=ON \
  "-DHEADRACE_TEST_FILES=main|heap|($files)_test" > /dev/null
cmake --build "$build" --target headrace_tests

run() { # cpu, arguments of headrace_tests
  echo "$emulator as $1: ${*:2}"
  QEMU_CPU=$1 QEMU_LD_PREFIX=/usr/$arch-linux-gnu $emulator "$build/headrace_tests" "${@:2}"
}
# In two halves side by side.
jobs=()
for half in 1/2 2/2; do run max --part $half & jobs+=($!); done
for job in "${jobs[@]}"; do wait "$job"; done
run $baseline linear
