#include "ops/softmax/softmax.h"

#include "ops/simd/math.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
constexpr float kInfinity = __builtin_inff();

// NaN may get lost here; it comes back through exp(x - max).
HR_INLINE float max_of_row(const float* x, int64_t n) {
  Vf m[4];
  for (Vf& lane : m) lane = splat(-kInfinity);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) m[j] = max(m[j], load(x + i + j * kLanes));
  }
  for (; i < n; i += kLanes) {
    m[0] = max(m[0], select(first_lanes(n - i), load(x + i, n - i), splat(-kInfinity)));
  }
  return max_lane(max(max(m[0], m[1]), max(m[2], m[3])));
}

// The sum of exp(x - max), whose order of additions depends on n alone. kStore: y = exp(x - max).
template <bool kStore>
HR_INLINE float sum_of_exps(const float* x, float* y, int64_t n, float max) {
  Vf m = splat(max);
  Vf total[4];
  for (Vf& part : total) part = splat(0.0f);
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      Vf e = exp_nonpositive(load(x + i + j * kLanes) - m);
      if (kStore) store(y + i + j * kLanes, e);
      total[j] = total[j] + e;
    }
  }
  for (; i < n; i += kLanes) {
    Vf e = exp_nonpositive(load(x + i, n - i) - m);
    if (kStore) store(y + i, e, n - i);
    total[0] = total[0] + select(first_lanes(n - i), e, splat(0.0f));
  }
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

void softmax_rows(const float* x, float* y, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    Vf scale = splat(1.0f / sum_of_exps<true>(x, y, n, max_of_row(x, n)));
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) * scale);
    if (i < n) store(y + i, load(y + i, n - i) * scale, n - i);
  }
}

void log_softmax_rows(const float* x, float* y, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    float max = max_of_row(x, n);
    Vf m = splat(max);
    Vf log_sum = log(splat(sum_of_exps<false>(x, y, n, max)));
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) - m - log_sum);
    if (i < n) store(y + i, load(x + i, n - i) - m - log_sum, n - i);
  }
}

// Calls body(x, y, lanes) for the columns, a vector of them at a time.
template <class Body>
HR_INLINE void each_vector(const float* x, float* y, int64_t columns, Body body) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    body(x + c, y + c, columns - c < kLanes ? columns - c : kLanes);
  }
}

void softmax_columns(const float* x, float* y, int64_t n, int64_t stride, int64_t columns) {
  each_vector(x, y, columns, [=](const float* in, float* out, int64_t lanes) {
    Vf m = splat(-kInfinity);
    for (int64_t i = 0; i < n; ++i) m = max(m, load(in + i * stride, lanes));
    Vf total = splat(0.0f);
    for (int64_t i = 0; i < n; ++i) {
      Vf e = exp_nonpositive(load(in + i * stride, lanes) - m);
      store(out + i * stride, e, lanes);
      total = total + e;
    }
    Vf scale = splat(1.0f) / total;
    for (int64_t i = 0; i < n; ++i) {
      store(out + i * stride, load(out + i * stride, lanes) * scale, lanes);
    }
  });
}

void log_softmax_columns(const float* x, float* y, int64_t n, int64_t stride, int64_t columns) {
  each_vector(x, y, columns, [=](const float* in, float* out, int64_t lanes) {
    Vf m = splat(-kInfinity);
    for (int64_t i = 0; i < n; ++i) m = max(m, load(in + i * stride, lanes));
    Vf total = splat(0.0f);
    for (int64_t i = 0; i < n; ++i) {
      total = total + exp_nonpositive(load(in + i * stride, lanes) - m);
    }
    Vf log_sum = log(total);
    for (int64_t i = 0; i < n; ++i) {
      store(out + i * stride, load(in + i * stride, lanes) - m - log_sum, lanes);
    }
  });
}

}  // namespace

extern const SoftmaxKernels softmax_kernels = {
    .softmax_rows = softmax_rows,
    .log_softmax_rows = log_softmax_rows,
    .softmax_columns = softmax_columns,
    .log_softmax_columns = log_softmax_columns,
};

}  // namespace headrace::HEADRACE_ISA_NS
