// Transposing matrices of 4-byte elements, per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

struct TransposeKernels {
  // to[r * columns + c] = from[r + c * step] for r < rows and c < columns. `streams`: store past
  // the caches, where the rows of `to` are whole cache lines.
  void (*matrix)(const float* from, int64_t step, float* to, int64_t rows, int64_t columns,
                 bool streams);
};

HEADRACE_DECLARE_KERNELS(TransposeKernels, transpose_kernels)

}  // namespace headrace
