// The parts of a convolution that differ per ISA, besides the matrix product.
#pragma once

#include <cstdint>

#include "ops/conv/window.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// Consecutive pixels of Y, counted over all images, whose windows become rows of a packed matrix.
struct PixelRows {
  const void* x;         // the group's first channel in the first image; floats or bfloat16
  int64_t channels;      // of the group
  int64_t pixel_stride;  // channels of X
  const Windows* windows;
  int64_t first;
  int64_t count;
};

// Where rows of elements as X has them go: in blocks of `block`, each row's `block_stride` apart.
struct RowsLayout {
  void* first;
  int64_t row_stride;
  int64_t block;
  int64_t block_stride;
};

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
  // Writes windows as rows of a matrix: element t * channels + c of a row is channel c as tap t
  // sees it, 0 on padding. Rows end with a 0 where their length is odd, if X holds bfloat16.
  void (*pack_pixels)(const PixelRows& rows, const RowsLayout& to);
  void (*pack_bf16_pixels)(const PixelRows& rows, const RowsLayout& to);
  // One chain of multiply-adds of floats per element, over the taps in order. X holds floats or
  // bfloat16; the last, for X of bfloat16, rounds Y to it as well.
  void (*depthwise)(const DepthwiseRow& row);
  void (*depthwise_from_bf16)(const DepthwiseRow& row);
  void (*depthwise_bf16)(const DepthwiseRow& row);
  // The largest of, or the sum over `divisor` of, `count` pixels of `channels` channels each.
  void (*max_of_pixels)(const float* const* pixels, int64_t count, int64_t channels, float* y);
  void (*average_of_pixels)(const float* const* pixels, int64_t count, int64_t channels,
                            float divisor, float* y);
  // [rows, cols] to [cols, rows].
  void (*transpose)(const float* from, int64_t rows, int64_t cols, float* to);
};

HEADRACE_DECLARE_KERNELS(ConvKernels, conv_kernels)

}  // namespace headrace
