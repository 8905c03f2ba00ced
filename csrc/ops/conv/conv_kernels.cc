#include "ops/conv/conv_kernels.h"

#include <cstddef>

#include "ops/conv/depthwise.h"
#include "ops/simd/narrow.h"
#include "ops/simd/transpose.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

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

void round_to_bf16(const float* from, int64_t count, uint16_t* to) {
  convert<F32, BF16>(from, to, count, [](Vf x) { return x; });
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
    .depthwise = depthwise<float, float>,
    .depthwise_from_bf16 = depthwise<uint16_t, float>,
    .depthwise_bf16 = depthwise<uint16_t, uint16_t>,
    .max_of_pixels = max_of_pixels,
    .average_of_pixels = average_of_pixels,
    .round_to_bf16 = round_to_bf16,
    .transpose = transpose_matrix,
};

}  // namespace headrace::HEADRACE_ISA_NS
