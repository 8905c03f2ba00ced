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
  if (step_a == 1 && step_b == 1) {
    fill_vectors(out, n, args.streams,
                 [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
                   return F::of(load_some(a + i, lanes), load_some(b + i, lanes));
                 });
  } else if (step_a == 1 && step_b == 0) {
    Vf all = splat(*b);
    fill_vectors(out, n, args.streams,
                 [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
                   return F::of(load_some(a + i, lanes), all);
                 });
  } else if (step_a == 0 && step_b == 1) {
    Vf all = splat(*a);
    fill_vectors(out, n, args.streams,
                 [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
                   return F::of(all, load_some(b + i, lanes));
                 });
  } else {
    for (int64_t i = 0; i < n; ++i) {
      store(out + i, F::of(splat(a[i * step_a]), splat(b[i * step_b])), 1);
    }
  }
}

// A NaN stays NaN, and where low > high the answer is high, as in numpy.clip.
HR_INLINE Vf clip_of(Vf x, Vf low, Vf high) {
  Vf raised = select(x < low, low, x);
  return select(high < raised, high, raised);
}

void clip(const LoopArgs& args) {
  const float* x = static_cast<const float*>(args.in[0]);
  const float* low = static_cast<const float*>(args.in[1]);
  const float* high = static_cast<const float*>(args.in[2]);
  float* out = static_cast<float*>(args.out);
  const int64_t* step = args.step;
  if (step[0] == 1 && step[1] == 0 && step[2] == 0) {
    Vf from = splat(*low);
    Vf to = splat(*high);
    fill_vectors(out, args.n, args.streams,
                 [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
                   return clip_of(load_some(x + i, lanes), from, to);
                 });
  } else {
    for (int64_t i = 0; i < args.n; ++i) {
      Vf y = clip_of(splat(x[i * step[0]]), splat(low[i * step[1]]), splat(high[i * step[2]]));
      store(out + i, y, 1);
    }
  }
}

}  // namespace

extern const ArithmeticKernels arithmetic_kernels = {loop<Add>, loop<Sub>, loop<Mul>, loop<Div>,
                                                     loop<Max>, loop<Min>, clip};

}  // namespace headrace::HEADRACE_ISA_NS
