// Pow, whose exponent may have another dtype than its base.
#include <cmath>

#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

template <class C>
C float_power(C base, double exponent) {
  // These are exact or correctly rounded, and what models mostly ask for.
  if (exponent == 2.0) return base * base;
  if (exponent == 1.0) return base;
  if (exponent == 0.5 && base >= 0) return std::sqrt(base);
  return static_cast<C>(std::pow(static_cast<double>(base), exponent));
}

template <class T>
T int_power(T base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 1) return 1;
    if constexpr (std::is_signed_v<T>) {
      if (base == T(-1)) return exponent % 2 == 0 ? 1 : -1;
    }
    return 0;
  }
  T result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = MulOf()(result, base);
    base = MulOf()(base, base);
  }
  return result;
}

struct PowerOf {
  template <class T, class E>
  T operator()(T base, E exponent) const {
    if constexpr (!std::is_integral_v<T>) {
      using C = ComputeType<T>;
      return static_cast<T>(float_power<C>(C(base), static_cast<double>(exponent)));
    } else if constexpr (std::is_integral_v<E>) {
      return int_power<T>(base, static_cast<int64_t>(exponent));
    } else {
      double power = std::pow(static_cast<double>(base), static_cast<double>(exponent));
      constexpr double kLimit = 0x1p63;
      return std::abs(power) < kLimit ? static_cast<T>(static_cast<int64_t>(power)) : T(0);
    }
  }
};

std::unique_ptr<Op> make_pow(const NodeSpec& spec) {
  require_inputs(spec, 2);
  if (spec.opset < 7) spec.unsupported("broadcasting by attributes, from before opset 7");
  ElementLoop loop = nullptr;
  visit_dtype(Types<float, double, Half, BFloat16, int32_t, int64_t>{}, spec.input_dtypes[0],
              [&]<class T>() {
                visit_dtype(Numbers{}, spec.input_dtypes[1],
                            [&]<class E>() { loop = binary_loop<PowerOf, T, E, T>; });
              });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, 0b01u);
}

}  // namespace

void register_power(OpRegistry& registry) {
  registry.add("Pow", make_pow);
}

}  // namespace headrace
