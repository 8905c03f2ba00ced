#include "ops/conv/byte_kernels.h"

#include <cstddef>

#include "ops/linear/static_int8_finish.h"
#include "ops/simd/bytes.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

HR_INLINE bool inside(int64_t i, int64_t n) {
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(n);
}

// One row of windows, written from its first byte on.
struct ByteWriter {
  uint8_t* at;
  int64_t room;  // left in the block
  int64_t block;
  int64_t next_block;  // from the end of one block to the next
  uint8_t padding;
  const uint8_t* end;  // of what may be read

  // Appends n bytes, paddings if `from` is null.
  HR_INLINE void append(ByteWriter& to, const uint8_t* from, int64_t n) {
    while (n > 0) {
      const int64_t count = n < to.room ? n : to.room;
      if (from == nullptr) {
        fill_bytes_loosely(to.padding, count, to.at);
      } else {
        if (to.end - from >= count + kLooseBytes) {
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
};

// The taps of one row of the kernel, `from` being X's row under it.
HR_INLINE void append_taps(ByteWriter& to, const ByteWindows& p, const uint8_t* from,
                           int64_t first) {
  const Windows& w = *p.windows;
  if (w.dilation[2] == 1 && p.channels == p.pixel_stride) {
    // The taps lie together: padding before them, the pixels themselves, padding behind.
    if (first >= 0 && first + w.kernel[2] <= w.in[2]) {
      return ByteWriter::append(to, from + first * p.channels, w.kernel[2] * p.channels);
    }
    int64_t begin = first < 0 ? -first : 0;
    if (begin > w.kernel[2]) begin = w.kernel[2];
    int64_t end = w.in[2] - first < w.kernel[2] ? w.in[2] - first : w.kernel[2];
    if (end < begin) end = begin;
    ByteWriter::append(to, nullptr, begin * p.channels);
    ByteWriter::append(to, from + (first + begin) * p.channels, (end - begin) * p.channels);
    ByteWriter::append(to, nullptr, (w.kernel[2] - end) * p.channels);
    return;
  }
  for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
    const int64_t at = first + kw * w.dilation[2];
    ByteWriter::append(to, inside(at, w.in[2]) ? from + at * p.pixel_stride : nullptr, p.channels);
  }
}

void pack_windows(const ByteWindows& p, const ByteRows& layout) {
  const Windows& w = *p.windows;
  int64_t col = p.first % w.out[2];
  int64_t height = p.first / w.out[2] % w.out[1];
  int64_t depth = p.first / (w.out[2] * w.out[1]) % w.out[0];
  int64_t image = p.first / (w.out[2] * w.out[1] * w.out[0]);
  for (int64_t i = 0; i < p.count; ++i) {
    ByteWriter to = {layout.first + i * layout.row_stride, layout.block, layout.block,
                     layout.block_stride - layout.block,   p.padding,    p.end};
    for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
      const int64_t d = depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
      for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
        const int64_t h = height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
        if (!inside(d, w.in[0]) || !inside(h, w.in[1])) {
          ByteWriter::append(to, nullptr, w.kernel[2] * p.channels);
          continue;
        }
        const int64_t row = ((image * w.in[0] + d) * w.in[1] + h) * w.in[2];
        append_taps(to, p, p.x + row * p.pixel_stride, col * w.stride[2] - w.pad_begin[2]);
      }
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

// `n` < kLanes bytes as a vector.
HR_INLINE Vi load_some_bytes(const uint8_t* from, int64_t n) {
  uint8_t all[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = from[i];
  return U8::load(all);
}

// `sources` holds kPixels pointers for each tap, where the pixels' taps lie.
template <StaticEnd kEnd, int kPixels>
void depthwise_pixels(const ByteDepthwiseRow& r, int64_t taps, int64_t col) {
  constexpr int64_t kSize = size_of(kEnd);
  const StaticFinish f = r.finish;
  const Vi flip = splat(static_cast<int32_t>(r.flip));
  for (int64_t c = 0; c < r.channels; c += kLanes) {
    const int64_t n = r.channels - c;
    Vf acc[kPixels];
#pragma GCC unroll 4
    for (int j = 0; j < kPixels; ++j) acc[j] = splat(0.0f);
    const uint8_t* const* source = r.sources;
    const float* weights = r.weights + c;
    if (n >= kLanes) {
      for (int64_t t = 0; t < taps; ++t, source += kPixels, weights += r.padded) {
        const Vf weight = load(weights);
#pragma GCC unroll 4
        for (int j = 0; j < kPixels; ++j) {
          acc[j] = fma(to_float(U8::load(source[j] + c) ^ flip), weight, acc[j]);
        }
      }
    } else {
      for (int64_t t = 0; t < taps; ++t, source += kPixels, weights += r.padded) {
        const Vf weight = load(weights);
        for (int j = 0; j < kPixels; ++j) {
          acc[j] = fma(to_float(load_some_bytes(source[j] + c, n) ^ flip), weight, acc[j]);
        }
      }
    }
    const Vi offset = load(f.offset + c);
    const Vf factor = load(f.factor + c);
    const Vf bias = load(f.bias + c);
#pragma GCC unroll 4
    for (int j = 0; j < kPixels; ++j) {
      const uint8_t* residual = nullptr;
      if constexpr (has_residual(kEnd)) residual = f.residual + (col + j) * f.residual_stride + c;
      auto* y = static_cast<char*>(r.y) + ((col + j) * r.channels + c) * kSize;
      finish_sums<kEnd>(f, to_int(acc[j]) + offset, factor, bias, residual, y, n);
    }
  }
}

// Finds where the taps of `pixels` pixels from `col` on lie. Returns the number of taps.
int64_t find_sources(const ByteDepthwiseRow& r, int64_t col, int64_t pixels) {
  const Windows& w = *r.windows;
  const uint8_t** source = r.sources;
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    const int64_t d = r.depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      const int64_t h = r.height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
      const bool there = inside(d, w.in[0]) && inside(h, w.in[1]);
      const uint8_t* row = r.x + (d * w.in[1] + h) * w.in[2] * r.channels;
      for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
        int64_t at = col * w.stride[2] - w.pad_begin[2] + kw * w.dilation[2];
        for (int64_t j = 0; j < pixels; ++j, at += w.stride[2]) {
          *source++ = there && inside(at, w.in[2]) ? row + at * r.channels : r.paddings;
        }
      }
    }
  }
  return w.kernel[0] * w.kernel[1] * w.kernel[2];
}

void depthwise(const ByteDepthwiseRow& r) {
  with_static_end(r.finish, [&](auto end) {
    constexpr StaticEnd kEnd = decltype(end)::kEnd;
    const int64_t width = r.windows->out[2];
    int64_t col = 0;
    for (; col + kByteDepthwisePixels <= width; col += kByteDepthwisePixels) {
      const int64_t taps = find_sources(r, col, kByteDepthwisePixels);
      depthwise_pixels<kEnd, kByteDepthwisePixels>(r, taps, col);
    }
    for (; col < width; ++col) depthwise_pixels<kEnd, 1>(r, find_sources(r, col, 1), col);
  });
}

// A cache line, in whatever registers the ISA has.
typedef uint8_t Line __attribute__((vector_size(64)));

void max_of_pixels(const uint8_t* const* pixels, int64_t count, int64_t channels, uint8_t flip,
                   uint8_t* y) {
  int64_t c = 0;
  for (; c + static_cast<int64_t>(sizeof(Line)) <= channels; c += sizeof(Line)) {
    Line most = {};
    for (int64_t i = 0; i < count; ++i) {
      Line x;
      __builtin_memcpy(&x, pixels[i] + c, sizeof(x));
      x ^= flip;
      most = x > most ? x : most;
    }
    most ^= flip;
    __builtin_memcpy(y + c, &most, sizeof(most));
  }
  for (; c < channels; ++c) {
    uint8_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto x = static_cast<uint8_t>(pixels[i][c] ^ flip);
      most = x > most ? x : most;
    }
    y[c] = static_cast<uint8_t>(most ^ flip);
  }
}

}  // namespace

extern const ByteKernels byte_kernels;
const ByteKernels byte_kernels = {
    .pack_windows = pack_windows,
    .depthwise = depthwise,
    .max_of_pixels = max_of_pixels,
};

}  // namespace headrace::HEADRACE_ISA_NS
