#include "ops/conv/winograd_kernels.h"

#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

// The matrices B^T and A^T of winograd.cc, applied to a column of vectors. Each sum is written
// out, so that every ISA adds in the same order.
struct F2 {
  static constexpr int kTile = 2;
  HR_INLINE void input(const Vf (&d)[4], Vf (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  HR_INLINE void output(const Vf (&m)[4], Vf (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
  }
};

struct F4 {
  static constexpr int kTile = 4;
  static constexpr float kA = 0.707106781186547524f;   // sqrt(1/2)
  static constexpr float kB = 1.41421356237309505f;    // sqrt(2)
  static constexpr float kA3 = 0.353553390593273762f;  // their cubes
  static constexpr float kB3 = 2.82842712474619010f;
  HR_INLINE void input(const Vf (&d)[6], Vf (&v)[6]) {
    const Vf two_and_half = splat(2.5f);
    const Vf half = splat(0.5f);
    const Vf two = splat(2.0f);
    v[0] = fnma(two_and_half, d[2], d[4]) + d[0];
    const Vf even_a = fnma(two, d[2], d[4]);
    const Vf odd_a = fnma(two, d[1], d[3]);
    v[1] = fma(splat(kA), odd_a, even_a);
    v[2] = fnma(splat(kA), odd_a, even_a);
    const Vf even_b = fnma(half, d[2], d[4]);
    const Vf odd_b = fnma(half, d[1], d[3]);
    v[3] = fma(splat(kB), odd_b, even_b);
    v[4] = fnma(splat(kB), odd_b, even_b);
    v[5] = fnma(two_and_half, d[3], d[5]) + d[1];
  }
  HR_INLINE void output(const Vf (&m)[6], Vf (&y)[4]) {
    const Vf even_a = m[1] + m[2];
    const Vf odd_a = m[1] - m[2];
    const Vf even_b = m[3] + m[4];
    const Vf odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = fma(splat(kB), odd_b, splat(kA) * odd_a);
    y[2] = fma(splat(2.0f), even_b, splat(0.5f) * even_a);
    y[3] = fma(splat(kB3), odd_b, fma(splat(kA3), odd_a, m[5]));
  }
};

template <class F>
void transform_input(const float* const* pixels, int64_t channels, const PointsLayout& to) {
  constexpr int kPoints = F::kTile + 2;
  float* block = to.first;
  for (int64_t begin = 0; begin < channels; begin += to.block, block += to.block_stride) {
    const int64_t end = channels - begin < to.block ? channels : begin + to.block;
    for (int64_t c = begin; c < end; c += kLanes) {
      const int64_t n = end - c < kLanes ? end - c : kLanes;
      Vf half[kPoints][kPoints];
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) {
        Vf d[kPoints], v[kPoints];
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) d[i] = load_some(pixels[i * kPoints + j] + c, n);
        F::input(d, v);
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) half[i][j] = v[i];
      }
      // Rows of packed operands have room for the lanes beyond.
      float* out = block + (c - begin);
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        Vf v[kPoints];
        F::input(half[i], v);
#pragma GCC unroll 6
        for (int j = 0; j < kPoints; ++j, out += to.point_stride) store(out, v[j]);
      }
    }
  }
}

template <class F>
void transform_output(const float* from, int64_t point_stride, int64_t channels, float* to) {
  constexpr int kPoints = F::kTile + 2;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t n = channels - c < kLanes ? channels - c : kLanes;
    Vf half[F::kTile][kPoints];
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) {
      Vf m[kPoints], y[F::kTile];
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        m[i] = load_some(from + (i * kPoints + j) * point_stride + c, n);
      }
      F::output(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < F::kTile; ++i) half[i][j] = y[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < F::kTile; ++i) {
      Vf y[F::kTile];
      F::output(half[i], y);
#pragma GCC unroll 4
      for (int j = 0; j < F::kTile; ++j) {
        float* out = to + (i * F::kTile + j) * channels + c;
        if (n == kLanes) {
          store(out, y[j]);
        } else {
          store(out, y[j], n);
        }
      }
    }
  }
}

}  // namespace

extern const WinogradKernels winograd_kernels;
const WinogradKernels winograd_kernels = {
    .two = {.input = transform_input<F2>, .output = transform_output<F2>},
    .four = {.input = transform_input<F4>, .output = transform_output<F4>},
};

}  // namespace headrace::HEADRACE_ISA_NS
