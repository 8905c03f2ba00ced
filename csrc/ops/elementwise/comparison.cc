// Equal, Less, Greater and their kin; And, Or, Xor.
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

struct EqualOf {
  template <class T>
  bool operator()(T a, T b) const {
    return ComputeType<T>(a) == ComputeType<T>(b);
  }
  bool operator()(StringRef a, StringRef b) const { return a.view() == b.view(); }
};
struct LessOf {
  template <class T>
  bool operator()(T a, T b) const {
    return ComputeType<T>(a) < ComputeType<T>(b);
  }
};
struct LessOrEqualOf {
  template <class T>
  bool operator()(T a, T b) const {
    return ComputeType<T>(a) <= ComputeType<T>(b);
  }
};
// Bools are bytes of 0 or 1; as integers the loops vectorise.
struct AndOf {
  uint8_t operator()(uint8_t a, uint8_t b) const { return a & b; }
};
struct OrOf {
  uint8_t operator()(uint8_t a, uint8_t b) const { return a | b; }
};
struct XorOf {
  uint8_t operator()(uint8_t a, uint8_t b) const { return a ^ b; }
};

template <class F, bool kSwapped>
std::unique_ptr<Op> make_comparison(const NodeSpec& spec) {
  require_inputs(spec, 2);
  if (spec.opset < 7) spec.unsupported("broadcasting by attributes, from before opset 7");
  ElementLoop loop = nullptr;
  visit_dtype(Numbers{}, spec.input_dtypes[0],
              [&]<class T>() { loop = binary_loop<F, T, T, bool>; });
  if constexpr (std::is_same_v<F, EqualOf>) {
    if (spec.input_dtypes[0] == DType::kBool) loop = binary_loop<EqualOf, uint8_t, uint8_t, bool>;
    if (spec.input_dtypes[0] == DType::kString) {
      loop = binary_loop<EqualOf, StringRef, StringRef, bool>;
    }
  }
  if (loop == nullptr || spec.input_dtypes[1] != spec.input_dtypes[0]) unsupported_dtype(spec, 0);
  bool in_place = spec.input_dtypes[0] == DType::kBool;
  return std::make_unique<ElementwiseOp>(loop, in_place ? 0b11u : 0u, kSwapped);
}

template <class F>
std::unique_ptr<Op> make_logical(const NodeSpec& spec) {
  require_inputs(spec, 2);
  for (size_t i = 0; i < 2; ++i) {
    if (spec.input_dtypes[i] != DType::kBool) unsupported_dtype(spec, i);
  }
  return std::make_unique<ElementwiseOp>(binary_loop<F, uint8_t, uint8_t, uint8_t>, 0b11u);
}

}  // namespace

void register_comparison(OpRegistry& registry) {
  registry.add("Equal", make_comparison<EqualOf, false>);
  registry.add("Less", make_comparison<LessOf, false>);
  registry.add("LessOrEqual", make_comparison<LessOrEqualOf, false>);
  registry.add("Greater", make_comparison<LessOf, true>);
  registry.add("GreaterOrEqual", make_comparison<LessOrEqualOf, true>);
  registry.add("And", make_logical<AndOf>);
  registry.add("Or", make_logical<OrOf>);
  registry.add("Xor", make_logical<XorOf>);
}

}  // namespace headrace
