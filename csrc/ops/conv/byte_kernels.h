// The parts of convolutions and pools of bytes that differ per ISA, besides the matrix product.
#pragma once

#include <cstdint>

#include "ops/conv/window.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// Consecutive pixels of Y, counted over all images, whose windows become rows of bytes.
struct ByteWindows {
  const uint8_t* x;      // the group's first channel in the first image
  int64_t channels;      // of the group
  int64_t pixel_stride;  // channels of X
  const Windows* windows;
  int64_t first;
  int64_t count;
  uint8_t padding;     // what stands for 0
  const uint8_t* end;  // of X's memory
};

// Where they go: in blocks of `block` bytes, each row's `block_stride` apart. Rows are written in
// order, each with up to 64 bytes behind it, and so is each block of a row.
struct ByteRows {
  uint8_t* first;
  int64_t row_stride;
  int64_t block;
  int64_t block_stride;
};

struct ByteKernels {
  // Element t * channels + c of a row is channel c as tap t sees it.
  void (*pack_windows)(const ByteWindows& windows, const ByteRows& to);
  // The largest of `count` pixels of `channels` bytes each, signed if `flip` is 0x80.
  void (*max_of_pixels)(const uint8_t* const* pixels, int64_t count, int64_t channels, uint8_t flip,
                        uint8_t* y);
};

HEADRACE_DECLARE_KERNELS(ByteKernels, byte_kernels)

}  // namespace headrace
