// Add, Sub, Mul, Div, Mod, PRelu.
#include "ops/elementwise/arithmetic.h"

#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

template <class F>
ElementLoop loop_of(DType dtype) {
  ElementLoop loop = nullptr;
  visit_dtype(Numbers{}, dtype, [&]<class T>() { loop = binary_loop<F, T, T, T>; });
  return loop;
}

using F32Loop = ElementLoop ArithmeticKernels::*;

std::unique_ptr<Op> make(const NodeSpec& spec, ElementLoop loop, F32Loop f32 = nullptr) {
  require_inputs(spec, 2);
  if (f32 != nullptr && spec.input_dtypes[0] == DType::kF32) {
    loop = HEADRACE_KERNELS(spec.isa, arithmetic_kernels).*f32;
  }
  if (loop == nullptr || spec.input_dtypes[1] != spec.input_dtypes[0]) unsupported_dtype(spec, 0);
  return std::make_unique<ElementwiseOp>(loop, 0b11u);
}

template <class F, F32Loop f32>
std::unique_ptr<Op> make_arithmetic(const NodeSpec& spec) {
  if (spec.opset < 7) spec.unsupported("broadcasting by attributes, from before opset 7");
  return make(spec, loop_of<F>(spec.input_dtypes.at(0)), f32);
}

std::unique_ptr<Op> make_mod(const NodeSpec& spec) {
  DType dtype = spec.input_dtypes.at(0);
  return make(spec,
              spec.int_or("fmod", 0) != 0 ? loop_of<RemainderOf>(dtype) : loop_of<ModuloOf>(dtype));
}

// PRelu's slope broadcasts to x and never the other way.
class PRelu : public ElementwiseOp {
 public:
  using ElementwiseOp::ElementwiseOp;
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    ElementwiseOp::infer(inputs, outputs);
    if (outputs[0] == inputs[0].shape) return;
    fail(ErrorKind::kShapeMismatch, "got a slope of shape ", to_string(inputs[1].shape),
         ", expected one that broadcasts to ", to_string(inputs[0].shape));
  }
};

std::unique_ptr<Op> make_prelu(const NodeSpec& spec) {
  require_inputs(spec, 2);
  ElementLoop loop = loop_of<PReluOf>(spec.input_dtypes[0]);
  if (loop == nullptr || spec.input_dtypes[1] != spec.input_dtypes[0]) unsupported_dtype(spec, 0);
  return std::make_unique<PRelu>(loop, 0b01u);
}

}  // namespace

void register_arithmetic(OpRegistry& registry) {
  registry.add("Add", make_arithmetic<AddOf, &ArithmeticKernels::add>);
  registry.add("Sub", make_arithmetic<SubOf, &ArithmeticKernels::sub>);
  registry.add("Mul", make_arithmetic<MulOf, &ArithmeticKernels::mul>);
  registry.add("Div", make_arithmetic<DivOf, &ArithmeticKernels::div>);
  registry.add("Mod", make_mod);
  registry.add("PRelu", make_prelu);
}

}  // namespace headrace
