// The windows of a convolution as rows of a packed matrix: bytes, whatever elements they make.
#pragma once

#include <cstdint>

#include "ops/conv/window.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// Consecutive pixels of Y, counted over all images.
struct WindowRows {
  const uint8_t* x;    // the group's first channel in the first image
  const uint8_t* end;  // of X's memory
  int64_t pixel;       // bytes of the group's channels
  int64_t pixel_stride;
  const Windows* windows;
  int64_t first;
  int64_t count;
  uint8_t padding;  // what bytes outside X are
  int64_t tail;     // bytes of padding that end each row
};

// Where they go: in blocks of `block` bytes, each row's `block_stride` apart. Rows are written in
// order, each with up to kWindowRowsBeyond bytes behind it, and so is each block of a row.
struct RowsLayout {
  uint8_t* first;
  int64_t row_stride;
  int64_t block;
  int64_t block_stride;
};
inline constexpr int64_t kWindowRowsBeyond = 64;

struct WindowRowsKernels {
  // Tap t's pixel of a row begins at byte t * pixel.
  void (*pack)(const WindowRows& rows, const RowsLayout& to);
};

HEADRACE_DECLARE_KERNELS(WindowRowsKernels, window_rows_kernels)

}  // namespace headrace
