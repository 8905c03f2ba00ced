// Quantising float32 to 8 bits and back, per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// n elements that share a scale and a zero point. y = saturate(round(x / scale) + zero), NaN giving
// the zero point, or y = (x - zero) * scale.
using QuantizeKernel = void (*)(const void* x, void* y, int64_t n, float scale, int32_t zero);

// The same with a scale and a zero point for each element; `zeros` has the dtype of the bytes, and
// is null where all of them are 0.
using QuantizeEachKernel = void (*)(const void* x, void* y, int64_t n, const float* scales,
                                    const void* zeros);

// A term of a sum of quantised tensors: (x - zero) * factor, with x ^ flip for x.
struct ByteTerm {
  const uint8_t* x;
  uint8_t flip;  // 0x80 for int8, whose zero point is then 128 more
  int32_t zero;
  float factor;  // from its steps to the sum's
};

struct ByteSum {
  ByteTerm a, b;
  uint8_t* y;
  uint8_t flip;
  int32_t zero;
  float low, high;  // bounds of the sum, in steps from its zero point
};

struct QuantizeKernels {
  QuantizeKernel to_u8, to_i8;
  QuantizeKernel from_u8, from_i8;
  QuantizeEachKernel each_to_u8, each_to_i8;
  QuantizeEachKernel each_from_u8, each_from_i8;
  // The least and the greatest of n elements and 0; NaNs do not count.
  void (*range)(const float* x, int64_t n, float* low, float* high);
  // n elements: y = round(a + b) + zero, each term and the sum rounded to float.
  void (*add)(const ByteSum& sum, int64_t n);
};

HEADRACE_DECLARE_KERNELS(QuantizeKernels, quantize_kernels)

}  // namespace headrace
