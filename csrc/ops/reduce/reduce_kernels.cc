#include "ops/reduce/reduce.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

struct Sum {
  HR_INLINE Vf take(Vf acc, Vf x) { return acc + x; }
  HR_INLINE float take(float acc, float x) { return acc + x; }
  HR_INLINE Vf join(Vf a, Vf b) { return a + b; }
  HR_INLINE float lanes(Vf a) { return sum(a); }
  static constexpr float kIdentity = 0.0f;
};
struct SumAbs : Sum {
  HR_INLINE Vf take(Vf acc, Vf x) { return acc + abs(x); }
  HR_INLINE float take(float acc, float x) { return acc + __builtin_fabsf(x); }
};
struct SumSquare : Sum {
  HR_INLINE Vf take(Vf acc, Vf x) { return acc + x * x; }
  HR_INLINE float take(float acc, float x) { return acc + x * x; }
};
// NaN comes through from either side, as in numpy.
struct Max {
  HR_INLINE Vf take(Vf acc, Vf x) { return select(is_nan(acc), acc, max(acc, x)); }
  HR_INLINE float take(float acc, float x) { return acc > x || acc != acc ? acc : x; }
  HR_INLINE Vf join(Vf a, Vf b) { return take(a, b); }
  HR_INLINE float lanes(Vf a) {
    float all[Vf::kLanes];
    store(all, a);
    for (int i = 1; i < Vf::kLanes; ++i) all[0] = take(all[0], all[i]);
    return all[0];
  }
  static constexpr float kIdentity = -__builtin_inff();
};
struct Min {
  HR_INLINE Vf take(Vf acc, Vf x) { return select(is_nan(acc), acc, min(acc, x)); }
  HR_INLINE float take(float acc, float x) { return acc < x || acc != acc ? acc : x; }
  HR_INLINE Vf join(Vf a, Vf b) { return take(a, b); }
  HR_INLINE float lanes(Vf a) {
    float all[Vf::kLanes];
    store(all, a);
    for (int i = 1; i < Vf::kLanes; ++i) all[0] = take(all[0], all[i]);
    return all[0];
  }
  static constexpr float kIdentity = __builtin_inff();
};

template <class F>
void row(void* accumulator, const void* in, int64_t n, int64_t step) {
  const float* x = static_cast<const float*>(in);
  float* total = static_cast<float*>(accumulator);
  int64_t i = 0;
  float part = F::kIdentity;
  if (step == 1 && n >= Vf::kLanes) {
    Vf a = splat(F::kIdentity), b = a, c = a, d = a;
    const int64_t w = Vf::kLanes;
    for (; i + 4 * w <= n; i += 4 * w) {
      a = F::take(a, load(x + i));
      b = F::take(b, load(x + i + w));
      c = F::take(c, load(x + i + 2 * w));
      d = F::take(d, load(x + i + 3 * w));
    }
    for (; i + w <= n; i += w) a = F::take(a, load(x + i));
    part = F::lanes(F::join(F::join(a, b), F::join(c, d)));
  }
  for (; i < n; ++i) part = F::take(part, x[i * step]);
  // What was reduced so far joins as it is: it must not be squared again.
  Vf joined = F::join(splat(*total), splat(part));
  store(total, joined, 1);
}

template <class F>
void column(void* accumulators, const void* in, int64_t width) {
  const float* x = static_cast<const float*>(in);
  float* acc = static_cast<float*>(accumulators);
  int64_t i = 0;
  for (; i + Vf::kLanes <= width; i += Vf::kLanes) {
    store(acc + i, F::take(load(acc + i), load(x + i)));
  }
  if (i < width)
    store(acc + i, F::take(load(acc + i, width - i), load(x + i, width - i)), width - i);
}

}  // namespace

extern const ReduceKernels reduce_kernels = {{row<Sum>, column<Sum>},
                                             {row<SumAbs>, column<SumAbs>},
                                             {row<SumSquare>, column<SumSquare>},
                                             {row<Max>, column<Max>},
                                             {row<Min>, column<Min>}};

}  // namespace headrace::HEADRACE_ISA_NS
