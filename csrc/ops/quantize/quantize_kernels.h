// Quantising float32 to 8 bits and back, per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// n elements that share a scale and a zero point. y = saturate(round(x / scale) + zero), NaN giving
// the zero point, or y = (x - zero) * scale.
using QuantizeKernel = void (*)(const void* x, void* y, int64_t n, float scale, int32_t zero);

struct QuantizeKernels {
  QuantizeKernel to_u8, to_i8;
  QuantizeKernel from_u8, from_i8;
};

HEADRACE_DECLARE_KERNELS(QuantizeKernels, quantize_kernels)

}  // namespace headrace
