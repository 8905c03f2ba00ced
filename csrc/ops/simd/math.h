// Elementary functions on vectors of float.
//
// Bounds are against the exact function over all finite arguments, for ISAs with a fused
// multiply-add; the x86 baseline without one may be up to 2 ulp worse. NaN gives NaN everywhere,
// infinities give the limits. Polynomials are minimax fits made for this file (Lawson's iteration
// in double), so their coefficients are not those of any series.
#pragma once

#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {

// c0 + c1 x + c2 x^2 + ...
HR_INLINE Vf polynomial(Vf, float c0) {
  return splat(c0);
}
template <class... Rest>
HR_INLINE Vf polynomial(Vf x, float c0, Rest... rest) {
  return fma(polynomial(x, rest...), x, splat(c0));
}

namespace detail {

constexpr float kLog2e = 1.44269504f;
// ln 2 in two parts; the high one has so few bits that its product with an exponent is exact.
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;

// e^r for |r| <= ln(2) / 2.
HR_INLINE Vf exp_reduced(Vf r) {
  return polynomial(r, 1.0f, 1.0f, 0.49999994f, 0.166665196f, 0.0416683927f, 0.00836878084f,
                    0.00138144661f);
}

// p * 2^n for integral n in [-150, 128], rounded once.
HR_INLINE Vf scale_by_power_of_2(Vf p, Vf n) {
#if defined(__AVX512F__)
  return {_mm512_scalef_ps(p.v, n.v)};
#else
  // 2^n itself may be out of range: two factors.
  Vi exponent = to_int(n);
  Vi half = shift_right<1>(exponent);
  Vi bias = splat(int32_t{127});
  return p * as_float(shift_left<23>(half + bias)) *
         as_float(shift_left<23>(exponent - half + bias));
#endif
}

}  // namespace detail

// 1 ulp; subnormal results included.
HR_INLINE Vf exp(Vf x) {
  using namespace detail;
  // Beyond these the result is 0 or infinity anyway. The order of arguments lets NaN through.
  x = min(splat(89.0f), max(splat(-104.0f), x));
  Vf n = round(x * splat(kLog2e));
  Vf r = fnma(n, splat(kLn2Low), fnma(n, splat(kLn2High), x));
  return scale_by_power_of_2(exp_reduced(r), n);
}

// exp for x <= 0, as softmaxes need it: 1 ulp, but 0 where the result would be subnormal
// (x < -87.33654). exp_nonpositive(0) is exactly 1.
HR_INLINE Vf exp_nonpositive(Vf x) {
  using namespace detail;
  // Adding 1.5 * 2^23 leaves the rounded sum in the low bits, here with the exponent's bias on top.
  const Vf shift = splat(12582912.0f + 127.0f);
  Vf t = fma(x, splat(kLog2e), shift);
  Vf n = t - shift;
  Vf r = fnma(n, splat(kLn2Low), fnma(n, splat(kLn2High), x));
  Vf p = exp_reduced(r) * as_float(shift_left<23>(as_int(t)));
  return select(x < splat(-87.33654f), splat(0.0f), p);
}

// 2^x for x <= 0: 2 ulp, but perhaps 0 where the result would be subnormal. Exactly 1 for 0.
HR_INLINE Vf exp2_nonpositive(Vf x) {
#if defined(__AVX512F__)
  // x - floor(x), 0 for -inf; scalef takes the floor of its exponent by itself.
  Vf r = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
  Vf p = polynomial(r, 1.0f, 0.693151295f, 0.240164444f, 0.0557999127f, 0.00901702978f,
                    0.00186713017f);
  return {_mm512_scalef_ps(p.v, x.v)};
#else
  const Vf shift = splat(12582912.0f + 127.0f);
  Vf t = x + shift;
  Vf r = x - (t - shift);
  Vf p = polynomial(r, 1.0f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f,
                    0.00132647273f);
  return select(x < splat(-126.0f), splat(0.0f), p * as_float(shift_left<23>(as_int(t))));
#endif
}

// 1 ulp. log(0) = -inf, log(x < 0) = NaN.
HR_INLINE Vf log(Vf x) {
  using namespace detail;
  Vm subnormal = x < splat(1.17549435e-38f);
  Vf y = abs(select(subnormal, x * splat(8388608.0f), x));  // so that no subtraction overflows
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  Vi e = shift_right<23>(as_int(y) - as_int(splat(0.70710678f)));
  Vf f = as_float(as_int(y) - shift_left<23>(e)) - splat(1.0f);
  Vf n = to_float(e) - select(subnormal, splat(23.0f), splat(0.0f));
  Vf z = f * f;
  Vf p = polynomial(f, 0.333333135f, -0.250000089f, 0.200021192f, -0.166679963f, 0.142195523f,
                    -0.124055892f, 0.118881628f, -0.116756514f, 0.0674663857f);
  Vf low = fnma(splat(0.5f), z, fma(n, splat(kLn2Low), p * (z * f)));
  Vf result = fma(n, splat(kLn2High), f + low);
  result = select(x < splat(__builtin_inff()), result, x);  // infinity and NaN stay
  result = select(x < splat(0.0f), splat(__builtin_nanf("")), result);
  return select(x == splat(0.0f), splat(-__builtin_inff()), result);
}

// log(1 + x) for x >= 0: 2 ulp.
HR_INLINE Vf log1p_nonnegative(Vf x) {
  Vf u = splat(1.0f) + x;
  // What the sum lost, to first order.
  Vf lost = x - (u - splat(1.0f));
  Vf result = log(u) + lost / u;
  return select(x < splat(__builtin_inff()), result, x);
}

// 1 / (1 + exp(-x)): 3 ulp, but 0 where exp(x) would be subnormal.
HR_INLINE Vf sigmoid(Vf x) {
  Vf e = exp_nonpositive(neg(abs(x)));
  return select(x < splat(0.0f), e, splat(1.0f)) / (splat(1.0f) + e);
}

// x * sigmoid(x): error within 2e-7 |x|; silu(-inf) = NaN, as the formula has it.
HR_INLINE Vf silu(Vf x) {
  return x * sigmoid(x);
}

// 2 ulp. tanh(-0) = -0.
HR_INLINE Vf tanh(Vf x) {
  Vf a = abs(x);
  Vf z = a * a;
  Vf small = fma(
      a * z,
      polynomial(z, -0.333332807f, 0.133314416f, -0.0537397154f, 0.020639088f, -0.00570498733f), a);
  Vf e = exp_nonpositive(a * splat(-2.0f));
  Vf large = (splat(1.0f) - e) / (splat(1.0f) + e);
  return copysign(select(a < splat(0.625f), small, large), x);
}

// 3 ulp. erf(-0) = -0.
HR_INLINE Vf erf(Vf x) {
  Vf a = min(splat(4.0f), abs(x));  // erf(4) rounds to 1
  Vf z = a * a;
  Vf small = fma(a,
                 polynomial(z, 0.128379151f, -0.376125246f, 0.112821408f, -0.0267789159f,
                            0.00501197157f, -0.000609039853f),
                 a);
  // The fourth root of 1 - erf is smooth enough for a short polynomial; its relative error grows
  // fourfold, but of a number below 1/4.
  Vf root =
      polynomial(a, 0.999805689f, -0.280699134f, -0.123799324f, 0.0236616209f, 0.00885171443f,
                 0.00661643362f, -0.00621489901f, 0.0017630019f, -0.000227048935f, 1.14840796e-05f);
  root = root * root;
  Vf large = fnma(root, root, splat(1.0f));
  return copysign(select(a < splat(0.9f), small, large), x);
}

// x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))): error within 4e-7 |x|, 10 ulp for x > 0, 4e-10 for
// x < -6.5. Neither exp nor a division: it runs in the epilogue of a Linear.
HR_INLINE Vf gelu_erf(Vf x) {
  // x Phi(x) = max(x, 0) - |x| Phi(-|x|). The eighth root of Phi(-a) is nearly a straight line;
  // rounding errors grow eightfold, but a Phi(-a) never exceeds 0.17.
  Vf a = min(splat(6.5f), abs(x));
  Vf root =
      polynomial(a, 0.917004049f, -0.091457732f, -0.031926956f, -0.000673856353f, 0.00150612346f,
                 3.33595854e-05f, -5.99745872e-05f, 7.43437931e-06f, -2.9294219e-07f);
  root = root * root;
  root = root * root;
  return fnma(a * root, root, max(splat(0.0f), x));
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): error within 2e-7 |x|;
// gelu_tanh(-inf) = NaN, as the formula has it.
HR_INLINE Vf gelu_tanh(Vf x) {
  // (1 + tanh(y)) / 2 = sigmoid(2 y)
  Vf inner = x * fma(x * x, splat(2.0f * 0.0356774081f), splat(2.0f * 0.797884561f));
  return x * sigmoid(inner);
}

// log(1 + exp(x)): 3 ulp, but 0 where exp(x) would be subnormal.
HR_INLINE Vf softplus(Vf x) {
  return max(splat(0.0f), x) + log1p_nonnegative(exp_nonpositive(neg(abs(x))));
}

}  // namespace headrace::HEADRACE_ISA_NS
