#include "ops/elementwise/arithmetic.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

struct Add {
  HR_INLINE Vf of(Vf a, Vf b) { return a + b; }
};
struct Sub {
  HR_INLINE Vf of(Vf a, Vf b) { return a - b; }
};
struct Mul {
  HR_INLINE Vf of(Vf a, Vf b) { return a * b; }
};
struct Div {
  HR_INLINE Vf of(Vf a, Vf b) { return a / b; }
};
// A NaN on either side comes through, as in numpy.maximum.
struct Max {
  HR_INLINE Vf of(Vf a, Vf b) { return select(is_nan(a), a, max(a, b)); }
};
struct Min {
  HR_INLINE Vf of(Vf a, Vf b) { return select(is_nan(a), a, min(a, b)); }
};

template <class F>
void loop(const LoopArgs& args) {
  const float* a = static_cast<const float*>(args.in[0]);
  const float* b = static_cast<const float*>(args.in[1]);
  float* out = static_cast<float*>(args.out);
  const int64_t n = args.n;
  const int64_t step_a = args.step[0];
  const int64_t step_b = args.step[1];
  int64_t i = 0;
  if (step_a == 1 && step_b == 1) {
    for (; i + Vf::kLanes <= n; i += Vf::kLanes) store(out + i, F::of(load(a + i), load(b + i)));
    if (i < n) store(out + i, F::of(load(a + i, n - i), load(b + i, n - i)), n - i);
  } else if (step_a == 1 && step_b == 0) {
    Vf all = splat(*b);
    for (; i + Vf::kLanes <= n; i += Vf::kLanes) store(out + i, F::of(load(a + i), all));
    if (i < n) store(out + i, F::of(load(a + i, n - i), all), n - i);
  } else if (step_a == 0 && step_b == 1) {
    Vf all = splat(*a);
    for (; i + Vf::kLanes <= n; i += Vf::kLanes) store(out + i, F::of(all, load(b + i)));
    if (i < n) store(out + i, F::of(all, load(b + i, n - i)), n - i);
  } else {
    for (; i < n; ++i) store(out + i, F::of(splat(a[i * step_a]), splat(b[i * step_b])), 1);
  }
}

}  // namespace

extern const ArithmeticKernels arithmetic_kernels = {loop<Add>, loop<Sub>, loop<Mul>,
                                                     loop<Div>, loop<Max>, loop<Min>};

}  // namespace headrace::HEADRACE_ISA_NS
