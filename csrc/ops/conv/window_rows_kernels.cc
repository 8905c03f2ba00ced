#include <cstddef>

#include "ops/conv/window_rows.h"
#include "ops/simd/bytes.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

static_assert(kLooseBytes <= kWindowRowsBeyond);

HR_INLINE bool inside(int64_t i, int64_t n) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
}

// One row, written from its first byte on.
struct RowWriter {
  uint8_t* at;
  int64_t room;  // left in the block
  int64_t block;
  int64_t next_block;  // from the end of one block to the next
};

// Appends n bytes, paddings if `from` is null.
HR_INLINE void append(const WindowRows& rows, RowWriter& to, const uint8_t* from, int64_t n) {
  while (n > 0) {
    const int64_t count = n < to.room ? n : to.room;
    if (from == nullptr) {
      fill_bytes_loosely(rows.padding, count, to.at);
    } else {
      if (rows.end - from >= count + kLooseBytes) {
        copy_bytes_loosely(from, count, to.at);
      } else {
        copy_bytes(from, count, to.at);
      }
      from += count;
    }
    n -= count;
    to.at += count;
    to.room -= count;
    if (to.room > 0) continue;
    to.at += to.next_block;
    to.room = to.block;
  }
}

// True if the taps of a row of the kernel lie together in X.
HR_INLINE bool taps_together(const WindowRows& rows) {
  return rows.windows->dilation[2] == 1 && rows.pixel == rows.pixel_stride;
}

// The taps of one row of the kernel, `from` being X's row under it.
HR_INLINE void append_taps(const WindowRows& rows, RowWriter& to, const uint8_t* from,
                           int64_t first) {
  const Windows& w = *rows.windows;
  if (taps_together(rows)) {
    // Padding before them, the pixels themselves, padding behind.
    if (first >= 0 && first + w.kernel[2] <= w.in[2]) {
      return append(rows, to, from + first * rows.pixel, w.kernel[2] * rows.pixel);
    }
    int64_t begin = first < 0 ? -first : 0;
    if (begin > w.kernel[2]) begin = w.kernel[2];
    int64_t end = w.in[2] - first < w.kernel[2] ? w.in[2] - first : w.kernel[2];
    if (end < begin) end = begin;
    append(rows, to, nullptr, begin * rows.pixel);
    append(rows, to, from + (first + begin) * rows.pixel, (end - begin) * rows.pixel);
    append(rows, to, nullptr, (w.kernel[2] - end) * rows.pixel);
    return;
  }
  for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
    const int64_t at = first + kw * w.dilation[2];
    append(rows, to, inside(at, w.in[2]) ? from + at * rows.pixel_stride : nullptr, rows.pixel);
  }
}

// Where the first tap of a window lies, on an axis each, and of which image.
struct WindowAt {
  int64_t image, depth, height, col;
};

HR_INLINE void append_window(const WindowRows& rows, RowWriter& to, WindowAt at) {
  const Windows& w = *rows.windows;
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    const int64_t d = at.depth + kd * w.dilation[0];
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      const int64_t h = at.height + kh * w.dilation[1];
      if (!inside(d, w.in[0]) || !inside(h, w.in[1])) {
        append(rows, to, nullptr, w.kernel[2] * rows.pixel);
        continue;
      }
      const int64_t row = ((at.image * w.in[0] + d) * w.in[1] + h) * w.in[2];
      append_taps(rows, to, rows.x + row * rows.pixel_stride, at.col);
    }
  }
}

// True if every tap along `axis` lies inside X, the first being at `at`.
HR_INLINE bool taps_inside_x(const Windows& w, int axis, int64_t at) {
  return at >= 0 && at + (w.kernel[axis] - 1) * w.dilation[axis] < w.in[axis];
}

HR_INLINE const uint8_t* pixel_at(const WindowRows& rows, WindowAt at) {
  const Windows& w = *rows.windows;
  const int64_t row = (at.image * w.in[0] + at.depth) * w.in[1] + at.height;
  return rows.x + (row * w.in[2] + at.col) * rows.pixel_stride;
}

// Bytes from a window's first tap to the last row of its taps.
HR_INLINE int64_t last_row_of_taps(const WindowRows& rows) {
  const Windows& w = *rows.windows;
  const int64_t height = (w.kernel[1] - 1) * w.dilation[1];
  const int64_t depth = (w.kernel[0] - 1) * w.dilation[0];
  return (depth * w.in[1] + height) * w.in[2] * rows.pixel_stride;
}

// How many of the next `left` windows of a row of Y, from the one at `at` on, can be copied
// loosely: they lie inside X, and bytes behind them do as well.
HR_INLINE int64_t loose_windows(const WindowRows& rows, WindowAt at, int64_t left) {
  const Windows& w = *rows.windows;
  if (!taps_inside_x(w, 0, at.depth) || !taps_inside_x(w, 1, at.height) || at.col < 0) return 0;
  const int64_t room = w.in[2] - w.kernel[2] - at.col;
  if (room < 0) return 0;
  int64_t count = room / w.stride[2] + 1;
  if (count > left) count = left;
  const int64_t step = w.stride[2] * rows.pixel_stride;
  const uint8_t* last = pixel_at(rows, at) + last_row_of_taps(rows);
  const int64_t beyond = rows.end - last - w.kernel[2] * rows.pixel - kLooseBytes;
  if (beyond < 0) return 0;
  return beyond / step + 1 < count ? beyond / step + 1 : count;
}

HR_INLINE void copy_windows(const WindowRows& rows, const uint8_t* from, int64_t count, uint8_t* to,
                            int64_t to_stride) {
  const Windows& w = *rows.windows;
  const int64_t taps = w.kernel[2] * rows.pixel;
  const int64_t row = w.dilation[1] * w.in[2] * rows.pixel_stride;
  const int64_t plane = w.dilation[0] * w.in[1] * w.in[2] * rows.pixel_stride;
  const int64_t step = w.stride[2] * rows.pixel_stride;
  for (int64_t i = 0; i < count; ++i, from += step, to += to_stride) {
    uint8_t* put = to;
    const uint8_t* slice = from;
    for (int64_t kd = 0; kd < w.kernel[0]; ++kd, slice += plane) {
      const uint8_t* at = slice;
      for (int64_t kh = 0; kh < w.kernel[1]; ++kh, at += row, put += taps) {
        copy_bytes_loosely(at, taps, put);
      }
    }
    for (int64_t j = 0; j < rows.tail; ++j) put[j] = rows.padding;
  }
}

void pack(const WindowRows& rows, const RowsLayout& layout) {
  const Windows& w = *rows.windows;
  const int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  const bool copies =
      rows.pixel > 0 && taps_together(rows) && taps * rows.pixel + rows.tail <= layout.block;
  int64_t col = rows.first % w.out[2];
  int64_t height = rows.first / w.out[2] % w.out[1];
  int64_t depth = rows.first / (w.out[2] * w.out[1]) % w.out[0];
  int64_t image = rows.first / (w.out[2] * w.out[1] * w.out[0]);
  for (int64_t i = 0; i < rows.count;) {
    uint8_t* row = layout.first + i * layout.row_stride;
    const WindowAt at = {image, depth * w.stride[0] - w.pad_begin[0],
                         height * w.stride[1] - w.pad_begin[1], col * w.stride[2] - w.pad_begin[2]};
    const int64_t left = rows.count - i < w.out[2] - col ? rows.count - i : w.out[2] - col;
    int64_t done = copies ? loose_windows(rows, at, left) : 0;
    if (done > 0) {
      copy_windows(rows, pixel_at(rows, at), done, row, layout.row_stride);
    } else {
      RowWriter to = {row, layout.block, layout.block, layout.block_stride - layout.block};
      append_window(rows, to, at);
      append(rows, to, nullptr, rows.tail);
      done = 1;
    }
    i += done;
    col += done;
    if (col < w.out[2]) continue;
    col = 0;
    if (++height < w.out[1]) continue;
    height = 0;
    if (++depth < w.out[0]) continue;
    depth = 0;
    ++image;
  }
}

}  // namespace

extern const WindowRowsKernels window_rows_kernels;
const WindowRowsKernels window_rows_kernels = {.pack = pack};

}  // namespace headrace::HEADRACE_ISA_NS
