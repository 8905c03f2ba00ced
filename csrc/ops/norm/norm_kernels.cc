#include "core/copy.h"
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

// Rows whose sums are taken side by side, so that they wait for each other's additions and not for
// their own.
constexpr int64_t kRowGroup = 4;

// totals[r] = the sum of term(r, vector's first element, lanes) over row r of n elements: even and
// odd vectors apart, whatever kRows is. `term` adds to its first argument.
template <int kRows, class Term>
HR_INLINE void sum_rows(int64_t n, float* totals, Term term) {
  Vf even[kRows];
  Vf odd[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = splat(0.0f);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      even[r] = term(even[r], r, i, kLanes);
      odd[r] = term(odd[r], r, i + kLanes, kLanes);
    }
  }
  for (; i < n; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      even[r] = term(even[r], r, i, n - i < kLanes ? n - i : kLanes);
    }
  }
  for (int r = 0; r < kRows; ++r) totals[r] = sum(even[r] + odd[r]);
}

// Sums of squared differences from `means`.
template <int kRows>
HR_INLINE void squares_of_rows(const float* x, int64_t n, const float* means, float* totals) {
  sum_rows<kRows>(n, totals,
                  [=](Vf acc, int r, int64_t i, int64_t lanes) __attribute__((always_inline)) {
                    Vf d = load_some(x + r * n + i, lanes) - splat(means[r]);
                    if (lanes < kLanes) d = select(first_lanes(lanes), d, splat(0.0f));
                    return fma(d, d, acc);
                  });
}

// y = (x - mean) * inv * scale + bias for one row.
// Meanwhile fetches what the next group of rows will read in this row's place: rows of a group are
// read side by side, in steps too short for the hardware to follow.
template <int kRows>
HR_INLINE void normalize_row(const float* x, float* y, int64_t n, float mean, float inv,
                             const float* scale, const float* bias, bool streams) {
  Vf m = splat(mean);
  Vf s = splat(inv);
  const float* next = x + kRows * n;
  if (bias != nullptr) {
    fill_vectors(y, n, streams, [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
      __builtin_prefetch(next + i);
      Vf v = load_some(x + i, lanes);
      return fma((v - m) * s, load_some(scale + i, lanes), load_some(bias + i, lanes));
    });
  } else {
    fill_vectors(y, n, streams, [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
      __builtin_prefetch(next + i);
      return (load_some(x + i, lanes) - m) * s * load_some(scale + i, lanes);
    });
  }
}

// A LayerNormalization of kRows rows, or without kCentered an RMSNormalization.
template <int kRows, bool kCentered>
HR_INLINE void norm_rows(const float* x, float* y, int64_t n, const float* scale, const float* bias,
                         float epsilon, float* mean, float* inv_std_dev, bool streams) {
  float means[kRows] = {};
  float squares[kRows];
  auto count = static_cast<float>(n);
  if (kCentered) {
    sum_rows<kRows>(n, means,
                    [=](Vf acc, int r, int64_t i, int64_t lanes) __attribute__((always_inline)) {
                      return acc + load_some(x + r * n + i, lanes);
                    });
    for (int r = 0; r < kRows; ++r) means[r] /= count;
  }
  squares_of_rows<kRows>(x, n, means, squares);
  for (int r = 0; r < kRows; ++r) {
    float inv = 1.0f / __builtin_sqrtf(squares[r] / count + epsilon);
    normalize_row<kRows>(x + r * n, y + r * n, n, means[r], inv, scale, bias, streams);
    if (mean != nullptr) mean[r] = means[r];
    if (inv_std_dev != nullptr) inv_std_dev[r] = inv;
  }
}

template <bool kCentered>
HR_INLINE void norm_all(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
                        const float* bias, float epsilon, float* mean, float* inv_std_dev) {
  int64_t row = 0;
  bool streams = x != y && rows * n * static_cast<int64_t>(sizeof(float)) >= kStreamBytes;
  auto at = [](float* p, int64_t i) { return p != nullptr ? p + i : nullptr; };
  for (; row + kRowGroup <= rows; row += kRowGroup) {
    norm_rows<kRowGroup, kCentered>(x + row * n, y + row * n, n, scale, bias, epsilon,
                                    at(mean, row), at(inv_std_dev, row), streams);
  }
  for (; row < rows; ++row) {
    norm_rows<1, kCentered>(x + row * n, y + row * n, n, scale, bias, epsilon, at(mean, row),
                            at(inv_std_dev, row), streams);
  }
}

void layer_norm(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
                const float* bias, float epsilon, float* mean, float* inv_std_dev) {
  norm_all<true>(x, y, rows, n, scale, bias, epsilon, mean, inv_std_dev);
}

void rms_norm(const float* x, float* y, int64_t rows, int64_t n, const float* scale,
              float epsilon) {
  norm_all<false>(x, y, rows, n, scale, nullptr, epsilon, nullptr, nullptr);
}

void sum_of_two(const float* a, const float* b, float* y, int64_t n) {
  if (b == nullptr) return each_vector(a, y, n, [](Vf v, int64_t, int64_t) { return v; });
  each_vector(a, y, n, [=](Vf v, int64_t i, int64_t lanes) __attribute__((always_inline)) {
    return v + load_some(b + i, lanes);
  });
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
    .sum = sum_of_two,
    .moments = moments,
    .affine = affine,
    .affine_each = affine_each,
};

}  // namespace headrace::HEADRACE_ISA_NS
