// Reductions along any axes. Every output has one accumulator chain in one order that depends on
// the Request's own shape alone.
#pragma once

#include "ops/node_inputs.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// How one kind of reduction treats elements of one dtype. Accumulators are opaque to the caller.
struct ReduceLoops {
  int64_t accumulator_bytes;
  // Sets `width` accumulators to the reduction of nothing.
  void (*init)(void* accumulators, int64_t width);
  // Takes n elements, `step` apart, into one accumulator.
  void (*row)(void* accumulator, const void* in, int64_t n, int64_t step);
  // Takes one element into each of `width` accumulators.
  void (*column)(void* accumulators, const void* in, int64_t width);
  // Writes the outputs; every accumulator has taken `count` elements.
  void (*finish)(const void* accumulators, void* out, int64_t width, int64_t count);
};

// The float32 loops per ISA; accumulators are floats.
struct ReduceKernels {
  using Row = void (*)(void* accumulator, const void* in, int64_t n, int64_t step);
  using Column = void (*)(void* accumulators, const void* in, int64_t width);
  struct Pair {
    Row row;
    Column column;
  };
  Pair sum;
  Pair sum_abs;
  Pair sum_square;
  Pair max;
  Pair min;
};

HEADRACE_DECLARE_KERNELS(ReduceKernels, reduce_kernels)

void register_reduce(OpRegistry& registry);
void register_arg(OpRegistry& registry);

}  // namespace headrace
