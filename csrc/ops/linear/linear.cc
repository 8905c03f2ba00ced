#include "ops/linear/linear.h"

#include <algorithm>

#include "ops/rooms.h"

namespace headrace {

void PackedLinear::infer(InputViews inputs, std::span<Shape> outputs) const {
  const Shape& x = inputs[0].shape;
  bool fits = x.rank() > 0 && x[x.rank() - 1] == parts_.panels.k();
  if (!fits || (parts_.matrices_only && x.rank() != 2)) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected ",
         parts_.matrices_only ? "two dims and " : "", "a last dim of ", parts_.panels.k());
  }
  outputs[0] = x;
  outputs[0][x.rank() - 1] = parts_.panels.cols();
  if (parts_.residual < 0) return;
  const Shape& residual = inputs[static_cast<size_t>(parts_.residual)].shape;
  if (residual != outputs[0]) {
    fail(ErrorKind::kShapeMismatch, "got a residual of shape ", to_string(residual),
         ", expected the output's, ", to_string(outputs[0]));
  }
}

void PackedLinear::run(const OpRun& run) const {
  const Segments& y = run.output(0);
  int64_t cols = std::max<int64_t>(parts_.panels.cols(), 1);
  // A constant operand has one segment for all Requests, which breaks the run of rows.
  bool apart = run.input(0).shared ||
               (parts_.residual >= 0 && run.input(static_cast<size_t>(parts_.residual)).shared);
  if (!apart) return run_rows(run, 0, y.elements() / cols);
  for (size_t r = 0; r < run.requests(); ++r) run_rows(run, r, y.shape(r).elements() / cols);
}

// `rows` rows from Request `first` on.
void PackedLinear::run_rows(const OpRun& run, size_t first, int64_t rows) const {
  const PackedPanels& panels = parts_.panels;
  GemmTask task{.a = run.input(0).view(first).data,
                .a_bf16 = run.input(0).dtype == DType::kBF16,
                .a_stride = panels.k(),
                .rows = rows,
                .c = run.output(0).view(first).data,
                .c_bf16 = run.output(0).dtype == DType::kBF16,
                .c_stride = panels.cols(),
                .epilogue = parts_.epilogue};
  task.epilogue.bias = parts_.bias.as<float>();
  if (parts_.residual >= 0) {
    const Segments& residual = run.input(static_cast<size_t>(parts_.residual));
    task.epilogue.residual = residual.view(first).as<float>();
    task.epilogue.residual_stride = panels.cols();
  }
  gemm(run, kernels_, panels, task);
  run.release_scratch();
}

namespace {

enum Input : size_t { kX, kWeight, kBias, kResidual };

std::unique_ptr<Op> make_linear(const NodeSpec& spec) {
  // Between two ops of low precision X and Y may be bfloat16.
  bool low = precision_of(spec) != Precision::kF32;
  auto check = [&](DType dtype, std::string_view what, bool narrow) {
    if (dtype == DType::kF32 || (narrow && dtype == DType::kBF16)) return;
    spec.unsupported(str("got ", what, " of dtype ", name_of(dtype), ", expected float32",
                         narrow ? " or bfloat16" : ""));
  };
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.has_input(i)) check(spec.input_dtypes[i], str("input ", i), low && i == kX);
  }
  check(spec.output_dtypes[0], "an output", low);
  if (!spec.is_constant(kWeight) || spec.constants[kWeight].shape.rank() != 2) {
    spec.unsupported("the weights must be a constant matrix");
  }
  if (spec.has_input(kBias) && !spec.is_constant(kBias)) {
    spec.unsupported("the bias must be a constant");
  }
  const GemmKernels& kernels = gemm_kernels_for(spec.isa, precision_of(spec));
  const ConstTensorView& weight = spec.constants[kWeight];
  int64_t k = weight.shape[0];
  int64_t cols = weight.shape[1];
  if (precision_of(spec) == Precision::kInt8 && k > kMaxInt8K) {
    spec.unsupported(str("int8 with ", k, " inputs, expected at most ", kMaxInt8K));
  }
  PackedLinear::Parts parts;
  parts.panels = PackedPanels(spec, kernels, {weight.as<float>(), cols}, k, cols);
  parts.epilogue = epilogue_of(spec);
  parts.consumed = 1u << kWeight | 1u << kBias;
  if (spec.has_input(kResidual)) parts.residual = kResidual;
  parts.own_rows = spec.is_constant(kResidual);
  if (spec.has_input(kBias)) {
    const ConstTensorView& bias = spec.constants[kBias];
    if (bias.shape != Shape{cols}) {
      spec.invalid(
          str("got a bias of shape ", to_string(bias.shape), ", expected ", to_string({cols})));
    }
    parts.bias = spec.pack(bias.bytes(), [&](std::byte* to) {
      std::copy_n(bias.as<float>(), cols, reinterpret_cast<float*>(to));
    });
  }
  return std::make_unique<PackedLinear>(kernels, std::move(parts));
}

}  // namespace

void register_linear_ops(OpRegistry& registry) {
  registry.add("headrace.Linear", make_linear);
  registry.add("headrace.QuantizedLinear", make_quantized_linear);
  registry.add("MatMul", make_matmul);
  registry.add("Gemm", make_gemm);
  registry.add("MatMulInteger", make_matmul_integer);
  registry.add("QLinearMatMul", make_qlinear_matmul);
  registry.add("Einsum", make_einsum);
}

}  // namespace headrace
