// float32 kernels of the norm room, one table per ISA, and the contracts its files share.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/op.h"
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
  // Mean and variance of n elements.
  void (*moments)(const float* x, int64_t n, float* mean, float* variance);
  // y = x * factor + offset, with one factor and offset for all n elements, or one for each.
  void (*affine)(const float* x, float* y, int64_t n, float factor, float offset);
  void (*affine_each)(const float* x, float* y, int64_t n, const float* factors,
                      const float* offsets);
};

HEADRACE_DECLARE_KERNELS(NormKernels, norm_kernels)

// Factories by file.
std::unique_ptr<Op> make_layer_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_batch_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_group_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_lp_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_lrn(const NodeSpec& spec);

// Throws Error(kShapeMismatch) unless `shape` holds as many elements as expected.
void check_elements(const char* input, const Shape& shape, int64_t expected);

// Refuses the node unless its first `inputs` inputs all have the first one's dtype.
void require_one_dtype(const NodeSpec& spec, size_t inputs);

}  // namespace headrace
