// Where the taps of a row of pixels lie, for the depthwise kernels of bytes.
#pragma once

#include "ops/conv/byte_depthwise.h"
#include "ops/linear/static_int8_finish.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// Writes, for each tap, where it lies for each of kPixels pixels from `col` on. Returns how many
// taps there are.
template <int kPixels>
int64_t find_sources(const ByteDepthwiseRow& r, int64_t col) {
  const Windows& w = *r.windows;
  auto inside = [](int64_t i, int64_t n) {
    return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
  };
  const uint8_t** source = r.sources;
  const int64_t step = w.stride[2] * r.channels;
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    const int64_t d = r.depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      const int64_t h = r.height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
      const bool there = inside(d, w.in[0]) && inside(h, w.in[1]);
      const uint8_t* row = r.x + (d * w.in[1] + h) * w.in[2] * r.channels;
      for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
        int64_t at = col * w.stride[2] - w.pad_begin[2] + kw * w.dilation[2];
        if (there && at >= 0 && at + (kPixels - 1) * w.stride[2] < w.in[2]) {
          const uint8_t* from = row + at * r.channels;
          for (int j = 0; j < kPixels; ++j, from += step) *source++ = from;
          continue;
        }
        for (int j = 0; j < kPixels; ++j, at += w.stride[2]) {
          *source++ = there && inside(at, w.in[2]) ? row + at * r.channels : r.paddings;
        }
      }
    }
  }
  return w.kernel[0] * w.kernel[1] * w.kernel[2];
}

// kLanes sums of pixel `col`, from channel `c` on.
template <StaticEnd kEnd>
HR_INLINE void finish_channels(const ByteDepthwiseRow& r, Vi sum, int64_t col, int64_t c) {
  const StaticFinish& f = r.finish;
  const uint8_t* residual = nullptr;
  if constexpr (has_residual(kEnd)) residual = f.residual + col * f.residual_stride + c;
  auto* y = static_cast<char*>(r.y) + (col * r.channels + c) * size_of(kEnd);
  finish_sums<kEnd>(f, sum + load(f.offset + c), load(f.factor + c), load(f.bias + c), residual, y,
                    r.channels - c);
}

// Calls Pixels::run<end, pixels>(row, taps, col) for the whole row.
template <class Pixels>
HR_INLINE void each_pixels(const ByteDepthwiseRow& r) {
  with_static_end(r.finish, [&](auto end) {
    constexpr StaticEnd kEnd = decltype(end)::kEnd;
    const int64_t width = r.windows->out[2];
    int64_t col = 0;
    for (; col + kByteDepthwisePixels <= width; col += kByteDepthwisePixels) {
      const int64_t taps = find_sources<kByteDepthwisePixels>(r, col);
      Pixels::template run<kEnd, kByteDepthwisePixels>(r, taps, col);
    }
    for (; col < width; ++col) {
      Pixels::template run<kEnd, 1>(r, find_sources<1>(r, col), col);
    }
  });
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
