// Sign, IsNaN, IsInf.
#include <cmath>

#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

struct SignOf {
  template <class T>
  T operator()(T a) const {
    using C = ComputeType<T>;
    C x = C(a);
    if (x != x) return a;
    return static_cast<T>(static_cast<C>((x > C(0)) - (x < C(0))));
  }
};
struct IsNanOf {
  template <class T>
  bool operator()(T a) const {
    return std::isnan(ComputeType<T>(a));
  }
};
template <bool kNegative, bool kPositive>
struct IsInfOf {
  template <class T>
  bool operator()(T a) const {
    auto x = ComputeType<T>(a);
    return std::isinf(x) && ((kPositive && x > 0) || (kNegative && x < 0));
  }
};

template <class F>
ElementLoop predicate_loop(DType dtype) {
  ElementLoop loop = nullptr;
  visit_dtype(Floats{}, dtype, [&]<class T>() { loop = unary_loop<F, T, bool>; });
  return loop;
}

std::unique_ptr<Op> make(const NodeSpec& spec, ElementLoop loop, unsigned overwrites) {
  require_inputs(spec, 1);
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, overwrites);
}

std::unique_ptr<Op> make_sign(const NodeSpec& spec) {
  ElementLoop loop = nullptr;
  visit_dtype(Numbers{}, spec.input_dtypes.at(0),
              [&]<class T>() { loop = unary_loop<SignOf, T, T>; });
  return make(spec, loop, 0b1u);
}

std::unique_ptr<Op> make_is_nan(const NodeSpec& spec) {
  return make(spec, predicate_loop<IsNanOf>(spec.input_dtypes.at(0)), 0);
}

std::unique_ptr<Op> make_is_inf(const NodeSpec& spec) {
  bool negative = spec.int_or("detect_negative", 1) != 0;
  bool positive = spec.int_or("detect_positive", 1) != 0;
  auto* loop_of =
      negative
          ? (positive ? predicate_loop<IsInfOf<true, true>> : predicate_loop<IsInfOf<true, false>>)
          : (positive ? predicate_loop<IsInfOf<false, true>>
                      : predicate_loop<IsInfOf<false, false>>);
  return make(spec, loop_of(spec.input_dtypes.at(0)), 0);
}

}  // namespace

void register_predicates(OpRegistry& registry) {
  registry.add("Sign", make_sign);
  registry.add("IsNaN", make_is_nan);
  registry.add("IsInf", make_is_inf);
}

}  // namespace headrace
