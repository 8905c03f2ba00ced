// The parts of a convolution that differ per ISA, besides the matrix product.
#pragma once

#include <cstdint>

#include "ops/conv/window.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// One channel of X under one kernel.
struct DepthwisePlane {
  const float* x;
  const float* kernel;
  float* y;  // dense
  const Windows* windows;
};

struct ConvKernels {
  // Packs one panel of the matrix whose columns are output pixels and whose row c * taps + t is
  // channel c as tap t sees it. `offsets` holds panel_cols offsets into a channel for each tap,
  // -1 where the tap falls on padding.
  void (*pack_windows)(const float* x, int64_t channels, int64_t channel_stride,
                       const int32_t* offsets, int64_t taps, float* panel);
  // Convolves one channel with one kernel, without the epilogue: one chain of multiply-adds per
  // pixel, over the taps in order.
  void (*depthwise)(const DepthwisePlane& plane);
};

HEADRACE_DECLARE_KERNELS(ConvKernels, conv_kernels)

}  // namespace headrace
