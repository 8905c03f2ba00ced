// float32 kernels of the softmax room, one table per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// Softmaxes over n elements; x and y may be the same.
struct SoftmaxKernels {
  // Over each of `rows` rows of n elements, back to back.
  using Rows = void (*)(const float* x, float* y, int64_t rows, int64_t n);
  // Over each of `columns` columns of n elements, `stride` apart.
  using Columns = void (*)(const float* x, float* y, int64_t n, int64_t stride, int64_t columns);
  Rows softmax_rows, log_softmax_rows;
  Columns softmax_columns, log_softmax_columns;
};

HEADRACE_DECLARE_KERNELS(SoftmaxKernels, softmax_kernels)

}  // namespace headrace
