// float32 kernels of the norm room, one table per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

struct NormKernels {
  // For each of `rows` rows of n elements: y = (x - mean) / sqrt(variance + epsilon) * scale +
  // bias. bias, mean and inv_std_dev may be null; the last two get one value per row.
  void (*layer_norm)(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
                     const float* bias, float epsilon, float* mean, float* inv_std_dev);
  // y = x / sqrt(mean of squares + epsilon) * scale.
  void (*rms_norm)(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
                   float epsilon);
  // y = a + b over n elements; a null b stands for 0.
  void (*sum)(const float* a, const float* b, float* y, int64_t n);
  // Mean and variance of n elements.
  void (*moments)(const float* x, int64_t n, float* mean, float* variance);
  // y = x * factor + offset, with one factor and offset for all n elements, or one for each.
  void (*affine)(const float* x, float* y, int64_t n, float factor, float offset);
  void (*affine_each)(const float* x, float* y, int64_t n, const float* factors,
                      const float* offsets);
};

HEADRACE_DECLARE_KERNELS(NormKernels, norm_kernels)

}  // namespace headrace
