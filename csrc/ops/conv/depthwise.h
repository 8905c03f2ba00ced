// The loops over a row of pixels under one kernel per channel, for conv_kernels.cc. X and Y hold
// floats or bfloat16, sums are floats.
#pragma once

#include "ops/conv/conv_kernels.h"
#include "ops/simd/bf16.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// The taps of a row of Y that fall inside X along depth and height.
struct RowTaps {
  int64_t depth_begin, depth_end;
  int64_t height_begin, height_end;
};

template <bool kWhole>
HR_INLINE Vf load_pixel(const float* x, int64_t n) {
  return kWhole ? load(x) : load(x, n);
}
template <bool kWhole>
HR_INLINE Vf load_pixel(const uint16_t* x, int64_t n) {
  return kWhole ? load_bf16(x) : load_bf16(x, n);
}
template <bool kWhole>
HR_INLINE void store_pixel(float* y, Vf x, int64_t n) {
  if (kWhole) return store(y, x);
  store(y, x, n);
}
template <bool kWhole>
HR_INLINE void store_pixel(uint16_t* y, Vf x, int64_t n) {
  if (kWhole) return store_bf16(y, x);
  store_bf16(y, x, n);
}

template <bool kWhole, class TY, int kPixels>
HR_INLINE void finish_pixels(const DepthwiseRow& r, const Vf (&acc)[kPixels], TY* y, int64_t c,
                             int64_t n) {
  const Vf low = splat(r.low);
  const Vf high = splat(r.high);
  const Vf bias = r.bias != nullptr ? load_pixel<kWhole>(r.bias + c, n) : splat(0.0f);
#pragma GCC unroll 8
  for (int j = 0; j < kPixels; ++j) {
    Vf x = acc[j] + bias;
    // The second operand comes out where it is NaN.
    if (r.clip) x = min(high, max(low, x));
    store_pixel<kWhole>(y + j * r.y_stride + c, x, n);
  }
}

// Calls f(row of taps, index of its first tap) for those inside X.
template <class F>
HR_INLINE void each_tap_row(const DepthwiseRow& r, const RowTaps& taps, F f) {
  const Windows& w = *r.windows;
  int64_t row = 0;
  for (int64_t kd = taps.depth_begin; kd < taps.depth_end; ++kd) {
    for (int64_t kh = taps.height_begin; kh < taps.height_end; ++kh, ++row) {
      f(row, (kd * w.kernel[1] + kh) * w.kernel[2]);
    }
  }
}

// Any window. `sources` holds a pointer for each tap and pixel, tap by tap: where it lies.
template <class TX, class TY, int kPixels>
struct AnyWindow {
  static int64_t sources_of_row(const Windows& w) { return w.kernel[2] * kPixels; }
  static int64_t place(const Windows& w, int64_t source) {
    return source / kPixels * w.dilation[2] + source % kPixels * w.stride[2];
  }

  template <bool kWhole>
  HR_INLINE void vector(const DepthwiseRow& r, const RowTaps& taps, TY* y, int64_t c, int64_t n) {
    Vf acc[kPixels];
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) acc[j] = splat(0.0f);
    const void* const* source = r.sources;
    each_tap_row(r, taps, [&](int64_t, int64_t tap) {
      const float* weights = r.weights + tap * r.channels + c;
      for (int64_t t = 0; t < r.windows->kernel[2]; ++t, weights += r.channels) {
        const Vf weight = load_pixel<kWhole>(weights, n);
#pragma GCC unroll 8
        for (int j = 0; j < kPixels; ++j, ++source) {
          acc[j] = fma(load_pixel<kWhole>(static_cast<const TX*>(*source) + c, n), weight, acc[j]);
        }
      }
    });
    finish_pixels<kWhole>(r, acc, y, c, n);
  }
};

// Three taps side by side: neighbouring pixels share what they read, so it is read once.
// `sources` holds a pointer for each of X's pixels under a row of the kernel.
template <class TX, class TY, int kStride, int kPixels>
struct ThreeTaps {
  static constexpr int kSpan = (kPixels - 1) * kStride + 3;
  static int64_t sources_of_row(const Windows&) { return kSpan; }
  static int64_t place(const Windows&, int64_t source) { return source; }

  template <bool kWhole>
  HR_INLINE void vector(const DepthwiseRow& r, const RowTaps& taps, TY* y, int64_t c, int64_t n) {
    Vf acc[kPixels];
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) acc[j] = splat(0.0f);
    const void* const* source = r.sources;
    each_tap_row(r, taps, [&](int64_t, int64_t tap) {
      const float* weights = r.weights + tap * r.channels + c;
      Vf weight[3];
#pragma GCC unroll 3
      for (int t = 0; t < 3; ++t) weight[t] = load_pixel<kWhole>(weights + t * r.channels, n);
#pragma GCC unroll 17
      for (int i = 0; i < kSpan; ++i) {
        const Vf x = load_pixel<kWhole>(static_cast<const TX*>(source[i]) + c, n);
        // Each pixel sees its taps from left to right, as it would alone.
#pragma GCC unroll 3
        for (int t = 0; t < 3; ++t) {
          if (i < t || (i - t) % kStride != 0 || (i - t) / kStride >= kPixels) continue;
          acc[(i - t) / kStride] = fma(x, weight[t], acc[(i - t) / kStride]);
        }
      }
      source += kSpan;
    });
    finish_pixels<kWhole>(r, acc, y, c, n);
  }
};

template <class Pixels, class TY>
void depthwise_pixels(const DepthwiseRow& r, const RowTaps& taps, int64_t col) {
  TY* y = static_cast<TY*>(r.y) + col * r.y_stride;
  int64_t c = r.begin;
  for (; c + Vf::kLanes <= r.end; c += Vf::kLanes) {
    Pixels::template vector<true>(r, taps, y, c, Vf::kLanes);
  }
  if (c < r.end) Pixels::template vector<false>(r, taps, y, c, r.end - c);
}

// Finds what the pixels from `col` on read; zeros where that is padding.
template <class Pixels, class TX>
void find_sources(const DepthwiseRow& r, const RowTaps& taps, int64_t col) {
  const Windows& w = *r.windows;
  const int64_t count = Pixels::sources_of_row(w);
  const int64_t first = col * w.stride[2] - w.pad_begin[2];
  const void** source = r.sources;
  for (int64_t kd = taps.depth_begin; kd < taps.depth_end; ++kd) {
    const int64_t d = r.depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
    for (int64_t kh = taps.height_begin; kh < taps.height_end; ++kh) {
      const int64_t h = r.height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
      const TX* row = static_cast<const TX*>(r.x) + (d * w.in[1] + h) * w.in[2] * r.channels;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = first + Pixels::place(w, i);
        const bool is_inside = static_cast<uint64_t>(at) < static_cast<uint64_t>(w.in[2]);
        *source++ = is_inside ? static_cast<const void*>(row + at * r.channels) : r.zeros;
      }
    }
  }
}

// Brings in what the next row of Y reads for the first time, under `pixels` pixels from `col` on:
// the kernel takes channels first, which the hardware's own prefetching does not follow.
template <class TX>
void fetch_below(const DepthwiseRow& r, int64_t col, int64_t pixels) {
  const Windows& w = *r.windows;
  const int64_t d = r.depth * w.stride[0] - w.pad_begin[0];
  const int64_t last = (w.kernel[1] - 1) * w.dilation[1] - w.pad_begin[1];
  int64_t begin = col * w.stride[2];
  int64_t end = (col + pixels) * w.stride[2];
  if (end > w.in[2]) end = w.in[2];
  if (d < 0 || d >= w.in[0]) return;
  for (int64_t i = 1; i <= w.stride[1]; ++i) {
    const int64_t h = r.height * w.stride[1] + last + i;
    if (h < 0 || h >= w.in[1]) continue;
    const TX* row = static_cast<const TX*>(r.x) + (d * w.in[1] + h) * w.in[2] * r.channels;
    for (int64_t at = begin; at < end; ++at) {
      for (int64_t c = r.begin; c < r.end; c += int64_t{64 / sizeof(TX)}) {
        __builtin_prefetch(row + at * r.channels + c, 0, 2);
      }
    }
  }
}

// The taps [begin, end) of `axis` that fall inside X for Y's position `out`.
HR_INLINE void clip_taps(const Windows& w, int axis, int64_t out, int64_t& begin, int64_t& end) {
  const int64_t first = out * w.stride[axis] - w.pad_begin[axis];
  const int64_t d = w.dilation[axis];
  begin = first >= 0 ? 0 : (-first + d - 1) / d;
  end = first >= w.in[axis] ? 0 : (w.in[axis] - first + d - 1) / d;
  if (end > w.kernel[axis]) end = w.kernel[axis];
  if (end < begin) end = begin;
}

template <class Pixels, class TX, class TY>
HR_INLINE void run_pixels(const DepthwiseRow& r, const RowTaps& taps, int64_t col, int pixels) {
  find_sources<Pixels, TX>(r, taps, col);
  fetch_below<TX>(r, col, pixels);
  depthwise_pixels<Pixels, TY>(r, taps, col);
}

// Takes a whole row in blocks of `Pixels<n>`. 14 pixels run as 7 + 7.
template <template <int> class Pixels, class TX, class TY>
void depthwise_row(const DepthwiseRow& r, const RowTaps& taps) {
  const int64_t width = r.windows->out[2];
  const int64_t step = width % 8 != 0 && width % 7 == 0 ? 7 : 8;
  int64_t col = 0;
  for (; step == 8 && col + 8 <= width; col += 8) run_pixels<Pixels<8>, TX, TY>(r, taps, col, 8);
  for (; step == 7 && col + 7 <= width; col += 7) run_pixels<Pixels<7>, TX, TY>(r, taps, col, 7);
  for (; col + 4 <= width; col += 4) run_pixels<Pixels<4>, TX, TY>(r, taps, col, 4);
  for (; col + 2 <= width; col += 2) run_pixels<Pixels<2>, TX, TY>(r, taps, col, 2);
  for (; col < width; ++col) run_pixels<Pixels<1>, TX, TY>(r, taps, col, 1);
}

template <class TX, class TY>
struct PixelsOf {
  template <int kPixels>
  using Any = AnyWindow<TX, TY, kPixels>;
  template <int kPixels>
  using Three = ThreeTaps<TX, TY, 1, kPixels>;
  template <int kPixels>
  using ThreeStrided = ThreeTaps<TX, TY, 2, kPixels>;
};

template <class TX, class TY>
void depthwise(const DepthwiseRow& r) {
  using Of = PixelsOf<TX, TY>;
  const Windows& w = *r.windows;
  RowTaps taps;
  clip_taps(w, 0, r.depth, taps.depth_begin, taps.depth_end);
  clip_taps(w, 1, r.height, taps.height_begin, taps.height_end);
  const bool three = w.kernel[2] == 3 && w.dilation[2] == 1;
  if (three && w.stride[2] == 1) return depthwise_row<Of::template Three, TX, TY>(r, taps);
  if (three && w.stride[2] == 2) return depthwise_row<Of::template ThreeStrided, TX, TY>(r, taps);
  depthwise_row<Of::template Any, TX, TY>(r, taps);
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
