// Max, Min, Sum, Mean over any number of inputs.
#include "core/strided.h"
#include "ops/elementwise/arithmetic.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

struct CopyOf {
  template <class T>
  T operator()(T a) const {
    return a;
  }
};

struct Loops {
  ElementLoop copy = nullptr;
  ElementLoop combine = nullptr;
  ElementLoop divide = nullptr;  // the mean's last step, by a count in params
};

template <class T>
void divide_loop(const LoopArgs& args) {
  using C = ComputeType<T>;
  const T* in = args.input<T>(0);
  T* out = args.output<T>();
  C count = static_cast<C>(*static_cast<const int64_t*>(args.params));
  for (int64_t i = 0; i < args.n; ++i) out[i] = static_cast<T>(C(in[i * args.step[0]]) / count);
}

// out = ((in0 op in1) op in2) ...
class VariadicOp : public Op {
 public:
  explicit VariadicOp(Loops loops) : loops_(loops) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
    for (size_t i = 1; i < inputs.size(); ++i) outputs[0] = broadcast(outputs[0], inputs[i].shape);
  }

  void run(const OpRun& run) const override {
    const Segments& out = run.output(0);
    Segments operands[2] = {run.input(0), {}};
    if (run.inputs() == 1) run_broadcast(run, {operands, 1}, out, loops_.copy);
    for (size_t i = 1; i < run.inputs(); ++i) {
      operands[1] = run.input(i);
      run_broadcast(run, {operands, 2}, out, loops_.combine);
      operands[0] = out;
    }
    if (loops_.divide == nullptr) return;
    auto count = static_cast<int64_t>(run.inputs());
    run_broadcast(run, {&out, 1}, out, loops_.divide, &count);
  }

  // The first input is read before anything is written. A later one may be read after.
  bool can_overwrite(size_t input) const override { return input == 0; }
  bool element_wise() const override { return true; }

 private:
  Loops loops_;
};

template <class F>
std::unique_ptr<Op> make(const NodeSpec& spec, ElementLoop f32, bool mean) {
  if (spec.inputs() == 0) spec.invalid("got no inputs, expected at least 1");
  if (spec.opset < 8) spec.unsupported("the version before opset 8, which does not broadcast");
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.input_dtypes[i] != spec.input_dtypes[0]) unsupported_dtype(spec, i);
  }
  Loops loops;
  visit_dtype(Numbers{}, spec.input_dtypes[0], [&]<class T>() {
    loops.copy = unary_loop<CopyOf, T, T>;
    loops.combine = binary_loop<F, T, T, T>;
    if (mean) loops.divide = divide_loop<T>;
  });
  if (loops.copy == nullptr) unsupported_dtype(spec, 0);
  if (spec.input_dtypes[0] == DType::kF32) loops.combine = f32;
  return std::make_unique<VariadicOp>(loops);
}

std::unique_ptr<Op> make_max(const NodeSpec& spec) {
  return make<MaxOf>(spec, HEADRACE_KERNELS(spec.isa, arithmetic_kernels).max, false);
}
std::unique_ptr<Op> make_min(const NodeSpec& spec) {
  return make<MinOf>(spec, HEADRACE_KERNELS(spec.isa, arithmetic_kernels).min, false);
}
std::unique_ptr<Op> make_sum(const NodeSpec& spec) {
  return make<AddOf>(spec, HEADRACE_KERNELS(spec.isa, arithmetic_kernels).add, false);
}
std::unique_ptr<Op> make_mean(const NodeSpec& spec) {
  return make<AddOf>(spec, HEADRACE_KERNELS(spec.isa, arithmetic_kernels).add, true);
}

}  // namespace

void register_variadic(OpRegistry& registry) {
  registry.add("Max", make_max);
  registry.add("Min", make_min);
  registry.add("Sum", make_sum);
  registry.add("Mean", make_mean);
}

}  // namespace headrace
