// float32 kernels of the activation room, one table per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// y[i] = f(x[i]) for n elements; x and y may be the same. `alpha` and `beta` are the op's
// attributes, if it has any. `streams`: y is large and not x, store past the caches.
using UnaryKernel = void (*)(const float* x, float* y, int64_t n, float alpha, float beta,
                             bool streams);

struct ActivationKernels {
  UnaryKernel relu, leaky_relu, elu, selu, celu, thresholded_relu, shrink;
  UnaryKernel sigmoid, hard_sigmoid, swish, hard_swish, mish, gelu_erf, gelu_tanh;
  UnaryKernel tanh, erf, exp, log, softplus, softsign;
  UnaryKernel abs, neg, sqrt, reciprocal, floor, ceil, round;
};

HEADRACE_DECLARE_KERNELS(ActivationKernels, activation_kernels)

}  // namespace headrace
