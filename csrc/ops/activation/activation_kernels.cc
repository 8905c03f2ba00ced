#include "ops/activation/activation.h"
#include "ops/simd/math.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <class F>
HR_INLINE void map(const float* x, float* y, int64_t n, bool streams, F f) {
  fill_vectors(y, n, streams, [=](int64_t i, int64_t lanes) __attribute__((always_inline)) {
    return f(load_some(x + i, lanes));
  });
}

// A kernel from an expression of the vector x and the attributes a and b, splatted.
#define HR_UNARY(name, expression)                                                             \
  void name##_kernel(const float* in, float* out, int64_t n, float alpha, float beta,          \
                     bool streams) {                                                           \
    [[maybe_unused]] const Vf a = splat(alpha);                                                \
    [[maybe_unused]] const Vf b = splat(beta);                                                 \
    [[maybe_unused]] const Vf zero = splat(0.0f);                                              \
    [[maybe_unused]] const Vf one = splat(1.0f);                                               \
    map(in, out, n, streams, [=](Vf x) __attribute__((always_inline)) { return expression; }); \
  }

HR_INLINE Vf floor_of(Vf x) {
  Vf r = round(x);
  return select(x < r, r - splat(1.0f), r);
}

HR_INLINE Vf ceil_of(Vf x) {
  Vf r = round(x);
  // copysign: ceil(-0.7) is -0, and -1 + 1 is +0.
  return select(r < x, copysign(r + splat(1.0f), x), r);
}

// x tanh(log(1 + e^x)): with e = exp(x) and w = e (e + 2), the tanh is w / (w + 2).
HR_INLINE Vf mish_of(Vf x) {
  Vf e = exp(min(splat(20.0f), x));  // beyond 20 the quotient is 1
  Vf w = e * (e + splat(2.0f));
  return x * (w / (w + splat(2.0f)));
}

// min and max give their second operand where one is NaN, hence the order of theirs.
HR_UNARY(relu, max(zero, x))
HR_UNARY(leaky_relu, select(x < zero, a* x, x))
HR_UNARY(elu, select(x < zero, a*(exp(x) - one), x))
HR_UNARY(selu, select(zero < x, b* x, b* fma(a, exp(x), neg(a))))
HR_UNARY(celu, max(zero, x) + min(zero, a*(exp(x / a) - one)))
HR_UNARY(thresholded_relu, select(x <= a, zero, x))
HR_UNARY(shrink, select(x < neg(a), x + b, select(x <= a, zero, x - b)))
HR_UNARY(sigmoid, sigmoid(x))
HR_UNARY(hard_sigmoid, max(zero, min(one, fma(a, x, b))))
HR_UNARY(swish, x* sigmoid(a* x))
HR_UNARY(hard_swish, x* max(zero, min(one, fma(a, x, b))))
HR_UNARY(mish, mish_of(x))
HR_UNARY(gelu_erf, gelu_erf(x))
HR_UNARY(gelu_tanh, gelu_tanh(x))
HR_UNARY(tanh, tanh(x))
HR_UNARY(erf, erf(x))
HR_UNARY(exp, exp(x))
HR_UNARY(log, log(x))
HR_UNARY(softplus, softplus(x))
HR_UNARY(softsign, x / (one + abs(x)))
HR_UNARY(abs, abs(x))
HR_UNARY(neg, neg(x))
HR_UNARY(sqrt, sqrt(x))
HR_UNARY(reciprocal, one / x)
HR_UNARY(floor, floor_of(x))
HR_UNARY(ceil, ceil_of(x))
HR_UNARY(round, round(x))

#undef HR_UNARY

}  // namespace

extern const ActivationKernels activation_kernels = {
    .relu = relu_kernel,
    .leaky_relu = leaky_relu_kernel,
    .elu = elu_kernel,
    .selu = selu_kernel,
    .celu = celu_kernel,
    .thresholded_relu = thresholded_relu_kernel,
    .shrink = shrink_kernel,
    .sigmoid = sigmoid_kernel,
    .hard_sigmoid = hard_sigmoid_kernel,
    .swish = swish_kernel,
    .hard_swish = hard_swish_kernel,
    .mish = mish_kernel,
    .gelu_erf = gelu_erf_kernel,
    .gelu_tanh = gelu_tanh_kernel,
    .tanh = tanh_kernel,
    .erf = erf_kernel,
    .exp = exp_kernel,
    .log = log_kernel,
    .softplus = softplus_kernel,
    .softsign = softsign_kernel,
    .abs = abs_kernel,
    .neg = neg_kernel,
    .sqrt = sqrt_kernel,
    .reciprocal = reciprocal_kernel,
    .floor = floor_kernel,
    .ceil = ceil_kernel,
    .round = round_kernel,
};

}  // namespace headrace::HEADRACE_ISA_NS
