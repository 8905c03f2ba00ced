#include "ops/conv/conv_kernels.h"

#include <cstddef>

#include "ops/conv/depthwise.h"
#include "ops/linear/gemm.h"
#include "ops/simd/transpose.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

// One row of a matrix, written from its first element on.
template <class T>
struct RowWriter {
  T* at;
  int64_t room;  // left in the block
  int64_t block;
  int64_t next_block;  // from the end of one block to the next
};

HR_INLINE void copy(const float* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store(to + i, load(from + i, n - i), n - i);
}
HR_INLINE void zero(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, splat(0.0f));
  if (i < n) store(to + i, splat(0.0f), n - i);
}
HR_INLINE void copy(const uint16_t* from, int64_t n, uint16_t* to) {
  __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(*to));
}
HR_INLINE void zero(uint16_t* to, int64_t n) {
  __builtin_memset(to, 0, static_cast<size_t>(n) * sizeof(*to));
}

// Appends n elements, zeros if `from` is null.
template <class T>
HR_INLINE void append(RowWriter<T>& to, const T* from, int64_t n) {
  while (n > 0) {
    const int64_t count = n < to.room ? n : to.room;
    if (from == nullptr) {
      zero(to.at, count);
    } else {
      copy(from, count, to.at);
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

HR_INLINE bool inside(int64_t i, int64_t n) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
}

// The taps of one row of the kernel, `from` being X's row under it.
template <class T>
HR_INLINE void append_taps(RowWriter<T>& to, const PixelRows& p, const T* from, int64_t first) {
  const Windows& w = *p.windows;
  if (w.dilation[2] == 1 && p.channels == p.pixel_stride) {
    // The taps lie together: padding before them, the pixels themselves, padding behind.
    if (first >= 0 && first + w.kernel[2] <= w.in[2]) {
      return append(to, from + first * p.channels, w.kernel[2] * p.channels);
    }
    int64_t begin = first < 0 ? -first : 0;
    if (begin > w.kernel[2]) begin = w.kernel[2];
    int64_t end = w.in[2] - first < w.kernel[2] ? w.in[2] - first : w.kernel[2];
    if (end < begin) end = begin;
    append<T>(to, nullptr, begin * p.channels);
    append(to, from + (first + begin) * p.channels, (end - begin) * p.channels);
    append<T>(to, nullptr, (w.kernel[2] - end) * p.channels);
    return;
  }
  for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
    const int64_t at = first + kw * w.dilation[2];
    append(to, inside(at, w.in[2]) ? from + at * p.pixel_stride : nullptr, p.channels);
  }
}

// Copies a window that lies inside X and whose taps of a row lie together.
template <class T>
HR_INLINE void copy_window(const PixelRows& p, const T* from, T* to) {
  const Windows& w = *p.windows;
  const int64_t taps = w.kernel[2] * p.channels;
  const int64_t row = w.dilation[1] * w.in[2] * p.pixel_stride;
  const int64_t plane = w.dilation[0] * w.in[1] * w.in[2] * p.pixel_stride;
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd, from += plane) {
    const T* at = from;
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh, at += row, to += taps) copy(at, taps, to);
  }
}

// True if every tap along `axis` lies inside X, the first being at `at`.
HR_INLINE bool taps_inside_x(const Windows& w, int axis, int64_t at) {
  return at >= 0 && at + (w.kernel[axis] - 1) * w.dilation[axis] < w.in[axis];
}

// Where the first tap of a window lies, on an axis each, and of which image.
struct WindowAt {
  int64_t image, depth, height, col;
};

template <class T>
HR_INLINE void append_window(RowWriter<T>& to, const PixelRows& p, WindowAt at) {
  const Windows& w = *p.windows;
  const auto* x = static_cast<const T*>(p.x);
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    const int64_t d = at.depth + kd * w.dilation[0];
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      const int64_t h = at.height + kh * w.dilation[1];
      if (!inside(d, w.in[0]) || !inside(h, w.in[1])) {
        append<T>(to, nullptr, w.kernel[2] * p.channels);
        continue;
      }
      const int64_t row = ((at.image * w.in[0] + d) * w.in[1] + h) * w.in[2];
      append_taps(to, p, x + row * p.pixel_stride, at.col);
    }
  }
}

template <class T>
void pack_pixels(const PixelRows& p, const RowsLayout& layout) {
  const Windows& w = *p.windows;
  const auto* x = static_cast<const T*>(p.x);
  const int64_t k = w.kernel[0] * w.kernel[1] * w.kernel[2] * p.channels;
  const bool odd = sizeof(T) == 2 && k % 2 != 0;
  const bool short_rows = k <= layout.block && w.dilation[2] == 1 && p.channels == p.pixel_stride;
  int64_t col = p.first % w.out[2];
  int64_t height = p.first / w.out[2] % w.out[1];
  int64_t depth = p.first / (w.out[2] * w.out[1]) % w.out[0];
  int64_t image = p.first / (w.out[2] * w.out[1] * w.out[0]);
  for (int64_t i = 0; i < p.count; ++i) {
    T* row = static_cast<T*>(layout.first) + i * layout.row_stride;
    const WindowAt at = {image, depth * w.stride[0] - w.pad_begin[0],
                         height * w.stride[1] - w.pad_begin[1], col * w.stride[2] - w.pad_begin[2]};
    if (short_rows && taps_inside_x(w, 0, at.depth) && taps_inside_x(w, 1, at.height) &&
        taps_inside_x(w, 2, at.col)) {
      const int64_t pixel = ((image * w.in[0] + at.depth) * w.in[1] + at.height) * w.in[2] + at.col;
      copy_window(p, x + pixel * p.pixel_stride, row);
      if (odd) row[k] = 0;
    } else {
      RowWriter<T> to = {row, layout.block, layout.block, layout.block_stride - layout.block};
      append_window(to, p, at);
      if (odd) append<T>(to, nullptr, 1);
    }
    if (++col < w.out[2]) continue;
    col = 0;
    if (++height < w.out[1]) continue;
    height = 0;
    if (++depth < w.out[0]) continue;
    depth = 0;
    ++image;
  }
}

template <class Step, class Done>
HR_INLINE void reduce_pixels(const float* const* pixels, int64_t count, int64_t channels,
                             float first, Step step, Done done, float* y) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vf acc = splat(first);
    for (int64_t i = 0; i < count; ++i) acc = step(acc, load(pixels[i] + c));
    store(y + c, done(acc));
  }
  if (c == channels) return;
  Vf acc = splat(first);
  for (int64_t i = 0; i < count; ++i) acc = step(acc, load(pixels[i] + c, channels - c));
  store(y + c, done(acc), channels - c);
}

void max_of_pixels(const float* const* pixels, int64_t count, int64_t channels, float* y) {
  // NaN stays.
  auto step = [](Vf acc, Vf x) { return select((acc < x) | is_nan(x), x, acc); };
  auto done = [](Vf acc) { return acc; };
  reduce_pixels(pixels, count, channels, -__builtin_inff(), step, done, y);
}

void average_of_pixels(const float* const* pixels, int64_t count, int64_t channels, float divisor,
                       float* y) {
  auto step = [](Vf acc, Vf x) { return acc + x; };
  auto done = [=](Vf acc) { return acc / splat(divisor); };
  reduce_pixels(pixels, count, channels, 0.0f, step, done, y);
}

void transpose_matrix(const float* from, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const bool whole = r + kLanes <= rows;
    int64_t c = 0;
    for (; whole && c + kLanes <= cols; c += kLanes) {
      Vf block[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) block[i] = load(from + (r + i) * cols + c);
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(to + (c + i) * rows + r, block[i]);
    }
    const int64_t end = whole ? r + kLanes : rows;
    for (; c < cols; ++c) {
      for (int64_t i = r; i < end; ++i) to[c * rows + i] = from[i * cols + c];
    }
  }
}

}  // namespace

extern const ConvKernels conv_kernels;
const ConvKernels conv_kernels = {
    .pack_pixels = pack_pixels<float>,
    .pack_bf16_pixels = pack_pixels<uint16_t>,
    .depthwise = depthwise<float, float>,
    .depthwise_from_bf16 = depthwise<uint16_t, float>,
    .depthwise_bf16 = depthwise<uint16_t, uint16_t>,
    .max_of_pixels = max_of_pixels,
    .average_of_pixels = average_of_pixels,
    .transpose = transpose_matrix,
};

}  // namespace headrace::HEADRACE_ISA_NS
