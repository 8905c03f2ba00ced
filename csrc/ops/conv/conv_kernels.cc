#include "ops/conv/conv_kernels.h"

#include <cstddef>

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

template <class T>
void pack_pixels(const PixelRows& p, const RowsLayout& layout) {
  const Windows& w = *p.windows;
  const auto* x = static_cast<const T*>(p.x);
  const bool odd = w.kernel[0] * w.kernel[1] * w.kernel[2] * p.channels % 2 != 0;
  int64_t col = p.first % w.out[2];
  int64_t height = p.first / w.out[2] % w.out[1];
  int64_t depth = p.first / (w.out[2] * w.out[1]) % w.out[0];
  int64_t image = p.first / (w.out[2] * w.out[1] * w.out[0]);
  for (int64_t i = 0; i < p.count; ++i) {
    RowWriter<T> to = {static_cast<T*>(layout.first) + i * layout.row_stride, layout.block,
                       layout.block, layout.block_stride - layout.block};
    for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
      const int64_t d = depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
      for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
        const int64_t h = height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
        if (!inside(d, w.in[0]) || !inside(h, w.in[1])) {
          append<T>(to, nullptr, w.kernel[2] * p.channels);
          continue;
        }
        const int64_t row = ((image * w.in[0] + d) * w.in[1] + h) * w.in[2];
        append_taps(to, p, x + row * p.pixel_stride, col * w.stride[2] - w.pad_begin[2]);
      }
    }
    if (sizeof(T) == 2 && odd) append<T>(to, nullptr, 1);
    if (++col < w.out[2]) continue;
    col = 0;
    if (++height < w.out[1]) continue;
    height = 0;
    if (++depth < w.out[0]) continue;
    depth = 0;
    ++image;
  }
}

// The taps of a row of Y that fall inside X along depth and height.
struct RowTaps {
  int64_t depth_begin, depth_end;
  int64_t height_begin, height_end;
};

// `sources` holds kPixels pointers for each tap in the row, where the pixels' taps lie.
template <int kPixels>
void depthwise_pixels(const DepthwiseRow& r, const RowTaps& taps, float* y) {
  const Windows& w = *r.windows;
  const Vf low = splat(r.low);
  const Vf high = splat(r.high);
  for (int64_t c = r.begin; c < r.end; c += kLanes) {
    const int64_t n = r.end - c < kLanes ? r.end - c : kLanes;
    Vf acc[kPixels];
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) acc[j] = splat(0.0f);
    const float* const* source = r.sources;
    for (int64_t kd = taps.depth_begin; kd < taps.depth_end; ++kd) {
      const int64_t tap = (kd * w.kernel[1] + taps.height_begin) * w.kernel[2];
      const int64_t count = (taps.height_end - taps.height_begin) * w.kernel[2];
      const float* weights = r.weights + tap * r.channels + c;
      if (n == kLanes) {
        for (int64_t t = 0; t < count; ++t, source += kPixels, weights += r.channels) {
          const Vf weight = load(weights);
#pragma GCC unroll 8
          for (int j = 0; j < kPixels; ++j) acc[j] = fma(load(source[j] + c), weight, acc[j]);
        }
      } else {
        for (int64_t t = 0; t < count; ++t, source += kPixels, weights += r.channels) {
          const Vf weight = load(weights, n);
#pragma GCC unroll 8
          for (int j = 0; j < kPixels; ++j) acc[j] = fma(load(source[j] + c, n), weight, acc[j]);
        }
      }
    }
    const Vf bias = r.bias != nullptr ? load(r.bias + c, n) : splat(0.0f);
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) {
      Vf x = acc[j] + bias;
      // The second operand comes out where it is NaN.
      if (r.clip) x = min(high, max(low, x));
      if (n == kLanes) {
        store(y + j * r.y_stride + c, x);
      } else {
        store(y + j * r.y_stride + c, x, n);
      }
    }
  }
}

using DepthwisePixels = void (*)(const DepthwiseRow& r, const RowTaps& taps, float* y);
constexpr DepthwisePixels kDepthwise[kDepthwisePixels] = {
    depthwise_pixels<1>, depthwise_pixels<2>, depthwise_pixels<3>, depthwise_pixels<4>,
    depthwise_pixels<5>, depthwise_pixels<6>, depthwise_pixels<7>, depthwise_pixels<8>,
};

// The taps [begin, end) of `axis` that fall inside X for Y's position `out`.
HR_INLINE void clip_taps(const Windows& w, int axis, int64_t out, int64_t& begin, int64_t& end) {
  const int64_t first = out * w.stride[axis] - w.pad_begin[axis];
  const int64_t d = w.dilation[axis];
  begin = first >= 0 ? 0 : (-first + d - 1) / d;
  end = first >= w.in[axis] ? 0 : (w.in[axis] - first + d - 1) / d;
  if (end > w.kernel[axis]) end = w.kernel[axis];
  if (end < begin) end = begin;
}

// Finds where the taps of `pixels` pixels from `col` on lie; zeros where that is padding.
void find_sources(const DepthwiseRow& r, const RowTaps& taps, int64_t col, int64_t pixels) {
  const Windows& w = *r.windows;
  const float** source = r.sources;
  for (int64_t kd = taps.depth_begin; kd < taps.depth_end; ++kd) {
    const int64_t d = r.depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
    for (int64_t kh = taps.height_begin; kh < taps.height_end; ++kh) {
      const int64_t h = r.height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
      const float* row = r.x + (d * w.in[1] + h) * w.in[2] * r.channels;
      for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
        int64_t at = col * w.stride[2] - w.pad_begin[2] + kw * w.dilation[2];
        for (int64_t j = 0; j < pixels; ++j, at += w.stride[2]) {
          *source++ = inside(at, w.in[2]) ? row + at * r.channels : r.zeros;
        }
      }
    }
  }
}

// Brings in what the next row of Y reads for the first time, under `pixels` pixels from `col` on:
// the kernel takes channels first, which the hardware's own prefetching does not follow.
void fetch_below(const DepthwiseRow& r, int64_t col, int64_t pixels) {
  const Windows& w = *r.windows;
  const int64_t d = r.depth * w.stride[0] - w.pad_begin[0];
  const int64_t last = (w.kernel[1] - 1) * w.dilation[1] - w.pad_begin[1];
  int64_t begin = col * w.stride[2];
  int64_t end = (col + pixels) * w.stride[2];
  if (end > w.in[2]) end = w.in[2];
  for (int64_t i = 1; i <= w.stride[1]; ++i) {
    const int64_t h = r.height * w.stride[1] + last + i;
    if (!inside(d, w.in[0]) || !inside(h, w.in[1])) continue;
    const float* row = r.x + (d * w.in[1] + h) * w.in[2] * r.channels;
    for (int64_t at = begin; at < end; ++at) {
      for (int64_t c = r.begin; c < r.end; c += 16) {
        __builtin_prefetch(row + at * r.channels + c, 0, 2);
      }
    }
  }
}

void depthwise(const DepthwiseRow& r) {
  const Windows& w = *r.windows;
  RowTaps taps;
  clip_taps(w, 0, r.depth, taps.depth_begin, taps.depth_end);
  clip_taps(w, 1, r.height, taps.height_begin, taps.height_end);
  const int64_t count =
      (taps.depth_end - taps.depth_begin) * (taps.height_end - taps.height_begin) * w.kernel[2];
  const int64_t blocks = (w.out[2] + kDepthwisePixels - 1) / kDepthwisePixels;
  int64_t found = 0;  // pixels of the last block, if none of its taps was on padding
  for (int64_t b = 0; b < blocks; ++b) {
    // Even blocks: 14 pixels run as 7 + 7.
    const int64_t col = w.out[2] * b / blocks;
    const int64_t pixels = w.out[2] * (b + 1) / blocks - col;
    const int64_t first = col * w.stride[2] - w.pad_begin[2];
    const int64_t last = first + (pixels - 1) * w.stride[2] + (w.kernel[2] - 1) * w.dilation[2];
    const bool whole = first >= 0 && last < w.in[2];
    if (whole && found == pixels) {
      const int64_t step = pixels * w.stride[2] * r.channels;
      for (int64_t i = 0; i < count * pixels; ++i) r.sources[i] += step;
    } else {
      find_sources(r, taps, col, pixels);
    }
    found = whole ? pixels : 0;
    fetch_below(r, col, pixels);
    kDepthwise[pixels - 1](r, taps, r.y + col * r.y_stride);
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
    .depthwise = depthwise,
    .max_of_pixels = max_of_pixels,
    .average_of_pixels = average_of_pixels,
    .transpose = transpose_matrix,
};

}  // namespace headrace::HEADRACE_ISA_NS
