// The parts of a convolution that differ per ISA, besides the matrix product.
#pragma once

#include <cstdint>

#include "ops/conv/window.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// One row of Y's pixels under one kernel per channel.
struct DepthwiseRow {
  const void* x;         // the image; floats or bfloat16
  const float* weights;  // [taps, channels]
  const float* zeros;    // as many as there are channels
  void* y;               // the row's first pixel; floats or bfloat16
  int64_t y_stride;      // from pixel to pixel
  int64_t channels;      // of X
  int64_t begin, end;    // channels to compute; Y's are at y + begin ... y + end - 1
  const Windows* windows;
  int64_t depth, height;  // of the row
  const void** sources;   // room for kDepthwisePixels pointers per tap
  const float* bias;      // per channel, or null
  float low, high;        // Y is clipped to these if `clip`
  bool clip;
};
inline constexpr int64_t kDepthwisePixels = 8;

struct ConvKernels {
  // One chain of multiply-adds of floats per element, over the taps in order. X holds floats or
  // bfloat16; the last, for X of bfloat16, rounds Y to it as well.
  void (*depthwise)(const DepthwiseRow& row);
  void (*depthwise_from_bf16)(const DepthwiseRow& row);
  void (*depthwise_bf16)(const DepthwiseRow& row);
  // The largest of, or the sum over `divisor` of, `count` pixels of `channels` channels each.
  void (*max_of_pixels)(const float* const* pixels, int64_t count, int64_t channels, float* y);
  void (*average_of_pixels)(const float* const* pixels, int64_t count, int64_t channels,
                            float divisor, float* y);
  // To the nearest bfloat16, ties to even.
  void (*round_to_bf16)(const float* from, int64_t count, uint16_t* to);
  // [rows, cols] to [cols, rows].
  void (*transpose)(const float* from, int64_t rows, int64_t cols, float* to);
};

HEADRACE_DECLARE_KERNELS(ConvKernels, conv_kernels)

}  // namespace headrace
