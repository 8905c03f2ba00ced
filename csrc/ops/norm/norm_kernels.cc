#include "ops/norm/norm.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

// The sum of term(vector, lanes' offset) over n elements, in an order that depends on n alone.
// `term` must be 0 in lanes at or beyond n - offset.
template <class Term>
HR_INLINE float sum_over(int64_t n, Term term) {
  Vf total[4];
  for (Vf& part : total) part = splat(0.0f);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) total[j] = term(total[j], i + j * kLanes, kLanes);
  }
  for (; i < n; i += kLanes) total[0] = term(total[0], i, n - i < kLanes ? n - i : kLanes);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

HR_INLINE Vf load_some(const float* p, int64_t lanes) {
  return lanes == kLanes ? load(p) : load(p, lanes);
}

HR_INLINE float mean_of(const float* x, int64_t n) {
  float total = sum_over(n, [=](Vf acc, int64_t i, int64_t lanes) __attribute__((always_inline)) {
    return acc + load_some(x + i, lanes);
  });
  return total / static_cast<float>(n);
}

// Two passes: the squares of differences lose nothing to cancellation.
HR_INLINE float variance_of(const float* x, int64_t n, float mean) {
  Vf m = splat(mean);
  float total = sum_over(n, [=](Vf acc, int64_t i, int64_t lanes) __attribute__((always_inline)) {
    Vf d = load_some(x + i, lanes) - m;
    if (lanes < kLanes) d = select(first_lanes(lanes), d, splat(0.0f));
    return fma(d, d, acc);
  });
  return total / static_cast<float>(n);
}

// y = f(x, i, lanes) for vectors that start at element i.
template <class F>
HR_INLINE void each_vector(const float* x, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(x + i), i, kLanes));
  if (i < n) store(y + i, f(load(x + i, n - i), i, n - i), n - i);
}

void layer_norm(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
                const float* bias, float epsilon, float* mean, float* inv_std_dev) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    float row_mean = mean_of(x, n);
    float inv = 1.0f / __builtin_sqrtf(variance_of(x, n, row_mean) + epsilon);
    if (mean != nullptr) mean[row] = row_mean;
    if (inv_std_dev != nullptr) inv_std_dev[row] = inv;
    Vf m = splat(row_mean);
    Vf s = splat(inv);
    if (bias != nullptr) {
      each_vector(x, y, n, [=](Vf v, int64_t i, int64_t lanes) __attribute__((always_inline)) {
        return fma((v - m) * s, load_some(scale + i, lanes), load_some(bias + i, lanes));
      });
    } else {
      each_vector(x, y, n, [=](Vf v, int64_t i, int64_t lanes) __attribute__((always_inline)) {
        return (v - m) * s * load_some(scale + i, lanes);
      });
    }
  }
}

void rms_norm(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
              float epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    float squares = variance_of(x, n, 0.0f);
    Vf s = splat(1.0f / __builtin_sqrtf(squares + epsilon));
    each_vector(x, y, n, [=](Vf v, int64_t i, int64_t lanes) __attribute__((always_inline)) {
      return v * s * load_some(scale + i, lanes);
    });
  }
}

void moments(const float* x, int64_t n, float* mean, float* variance) {
  *mean = mean_of(x, n);
  *variance = variance_of(x, n, *mean);
}

void affine(const float* x, float* y, int64_t n, float factor, float offset) {
  Vf f = splat(factor);
  Vf o = splat(offset);
  each_vector(x, y, n, [=](Vf v, int64_t, int64_t) { return fma(v, f, o); });
}

void affine_each(const float* x, float* y, int64_t n, const float* factors, const float* offsets) {
  each_vector(x, y, n, [=](Vf v, int64_t i, int64_t lanes) __attribute__((always_inline)) {
    return fma(v, load_some(factors + i, lanes), load_some(offsets + i, lanes));
  });
}

}  // namespace

extern const NormKernels norm_kernels = {
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .moments = moments,
    .affine = affine,
    .affine_each = affine_each,
};

}  // namespace headrace::HEADRACE_ISA_NS
