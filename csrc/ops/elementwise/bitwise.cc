// BitwiseAnd, BitwiseOr, BitwiseXor, BitwiseNot, BitShift, Not.
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

struct AndOf {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct OrOf {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};
struct XorOf {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a ^ b);
  }
};
struct ComplementOf {
  template <class T>
  T operator()(T a) const {
    return static_cast<T>(~a);
  }
};
struct NotOf {
  uint8_t operator()(uint8_t a) const { return a == 0; }
};
// Shifting by the width or more, or by less than nothing, leaves only copies of the sign; C++ would
// leave it undefined.
template <class T>
bool within_width(T shift) {
  return static_cast<uint64_t>(shift) < sizeof(T) * 8;
}
struct ShiftLeftOf {
  template <class T>
  T operator()(T a, T b) const {
    using U = std::make_unsigned_t<T>;
    return within_width(b) ? static_cast<T>(static_cast<U>(a) << b) : T(0);
  }
};
struct ShiftRightOf {
  template <class T>
  T operator()(T a, T b) const {
    if (within_width(b)) return static_cast<T>(a >> b);
    return a < T(0) ? T(-1) : T(0);
  }
};

template <class F>
std::unique_ptr<Op> make_binary(const NodeSpec& spec) {
  require_inputs(spec, 2);
  ElementLoop loop = nullptr;
  // The bits of signed and unsigned integers behave alike.
  visit_dtype(Ints{}, spec.input_dtypes[0], [&]<class T>() {
    using U = std::make_unsigned_t<T>;
    loop = binary_loop<F, U, U, U>;
  });
  if (loop == nullptr || spec.input_dtypes[1] != spec.input_dtypes[0]) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, 0b11u);
}

std::unique_ptr<Op> make_shift(const NodeSpec& spec) {
  require_inputs(spec, 2);
  std::string direction = spec.string_or("direction", "");
  if (direction != "LEFT" && direction != "RIGHT") {
    spec.invalid(str("direction is '", direction, "', expected LEFT or RIGHT"));
  }
  ElementLoop loop = nullptr;
  visit_dtype(Ints{}, spec.input_dtypes[0], [&]<class T>() {
    loop = direction == "LEFT" ? binary_loop<ShiftLeftOf, T, T, T>
                               : binary_loop<ShiftRightOf, T, T, T>;
  });
  if (loop == nullptr || spec.input_dtypes[1] != spec.input_dtypes[0]) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, 0b11u);
}

std::unique_ptr<Op> make_complement(const NodeSpec& spec) {
  require_inputs(spec, 1);
  ElementLoop loop = nullptr;
  visit_dtype(Ints{}, spec.input_dtypes[0], [&]<class T>() {
    using U = std::make_unsigned_t<T>;
    loop = unary_loop<ComplementOf, U, U>;
  });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, 0b1u);
}

std::unique_ptr<Op> make_not(const NodeSpec& spec) {
  require_inputs(spec, 1);
  if (spec.input_dtypes[0] != DType::kBool) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(unary_loop<NotOf, uint8_t, uint8_t>, 0b1u);
}

}  // namespace

void register_bitwise(OpRegistry& registry) {
  registry.add("BitwiseAnd", make_binary<AndOf>);
  registry.add("BitwiseOr", make_binary<OrOf>);
  registry.add("BitwiseXor", make_binary<XorOf>);
  registry.add("BitwiseNot", make_complement);
  registry.add("BitShift", make_shift);
  registry.add("Not", make_not);
}

}  // namespace headrace
