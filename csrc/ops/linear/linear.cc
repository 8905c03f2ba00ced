// headrace.Linear: Y = act(X * W + bias) + residual with constant W and bias, over all rows of all
// Requests at once.
#include "ops/linear/gemm.h"
#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

enum Input : size_t { kX, kWeight, kBias, kResidual };

class Linear : public Op {
 public:
  explicit Linear(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, gemm_kernels)), activation_(activation_of(spec)) {
    const ConstTensorView& weight = spec.constants[kWeight];
    int64_t cols = weight.shape[1];
    panels_ = PackedPanels(kernels_, weight.as<float>(), cols, false, weight.shape[0], cols);
    if (!spec.has_input(kBias)) return;
    const ConstTensorView& bias = spec.constants[kBias];
    if (bias.shape != Shape{cols}) {
      spec.invalid(
          str("got a bias of shape ", to_string(bias.shape), ", expected ", to_string({cols})));
    }
    bias_.assign(bias.as<float>(), bias.as<float>() + cols);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[kX].shape;
    if (x.rank() == 0 || x[x.rank() - 1] != panels_.k()) {
      fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected a last dim of ",
           panels_.k());
    }
    outputs[0] = x;
    outputs[0][x.rank() - 1] = panels_.cols();
    if (inputs.size() > kResidual && inputs[kResidual].present() &&
        inputs[kResidual].shape != outputs[0]) {
      fail(ErrorKind::kShapeMismatch, "got a residual of shape ",
           to_string(inputs[kResidual].shape), ", expected the output's, ", to_string(outputs[0]));
    }
  }

  void run(const OpRun& run) const override {
    const Segments& y = run.output(0);
    bool apart = run.input(kX).shared || (run.has_input(kResidual) && run.input(kResidual).shared);
    if (!apart) return run_rows(run, 0, y.elements() / std::max<int64_t>(panels_.cols(), 1));
    for (size_t r = 0; r < run.requests(); ++r) {
      run_rows(run, r, y.shape(r).elements() / std::max<int64_t>(panels_.cols(), 1));
    }
  }

  bool can_overwrite(size_t input) const override { return input == kResidual; }
  bool consumes(size_t input) const override { return input == kWeight || input == kBias; }
  int64_t packed_bytes() const override {
    return panels_.bytes() + static_cast<int64_t>(bias_.size() * sizeof(float));
  }

 private:
  // `rows` rows from Request `first` on.
  void run_rows(const OpRun& run, size_t first, int64_t rows) const {
    GemmTask task{.a = run.input(kX).view(first).as<float>(),
                  .a_stride = panels_.k(),
                  .rows = rows,
                  .c = run.output(0).view(first).as<float>(),
                  .c_stride = panels_.cols(),
                  .epilogue = {}};
    task.epilogue.activation = activation_;
    if (!bias_.empty()) task.epilogue.bias = bias_.data();
    if (run.has_input(kResidual)) {
      task.epilogue.residual = run.input(kResidual).view(first).as<float>();
      task.epilogue.residual_stride = panels_.cols();
    }
    gemm(run, kernels_, panels_, task);
    run.release_scratch();
  }

  const GemmKernels& kernels_;
  Activation activation_;
  PackedPanels panels_;
  std::vector<float> bias_;
};

std::unique_ptr<Op> make_linear(const NodeSpec& spec) {
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && spec.input_dtypes[i] != DType::kF32) {
      spec.unsupported(
          str("got input ", i, " of dtype ", name_of(spec.input_dtypes[i]), ", expected float32"));
    }
  }
  if (!spec.is_constant(kWeight) || spec.constants[kWeight].shape.rank() != 2) {
    spec.unsupported("the weights must be a constant matrix");
  }
  if (spec.has_input(kBias) && !spec.is_constant(kBias)) {
    spec.unsupported("the bias must be a constant");
  }
  return std::make_unique<Linear>(spec);
}

}  // namespace

void register_linear_ops(OpRegistry& registry) {
  registry.add("headrace.Linear", make_linear);
}

}  // namespace headrace
