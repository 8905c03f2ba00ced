#include "ops/conv/byte_kernels.h"

#include <cstddef>

#include "ops/simd/bytes.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

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
    .max_of_pixels = max_of_pixels,
};

}  // namespace headrace::HEADRACE_ISA_NS
