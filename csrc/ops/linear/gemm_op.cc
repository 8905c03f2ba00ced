// Gemm: Y = alpha * A' * B' + beta * C, where ' transposes on demand and C broadcasts to Y.
#include <algorithm>

#include "ops/linear/linear.h"
#include "ops/linear/naive.h"

namespace headrace {
namespace {

struct GemmAttributes {
  float alpha;
  float beta;
  bool transpose_a;
  bool transpose_b;
};

struct GemmShape {
  int64_t rows;
  int64_t k;
  int64_t cols;
};

GemmShape gemm_shape(const GemmAttributes& g, const Shape& a, const Shape& b) {
  if (a.rank() != 2 || b.rank() != 2 || a[g.transpose_a ? 0 : 1] != b[g.transpose_b ? 1 : 0]) {
    fail(ErrorKind::kShapeMismatch, "got A of shape ", to_string(a), g.transpose_a ? "^T" : "",
         " and B of shape ", to_string(b), g.transpose_b ? "^T" : "",
         ", expected [M, K] and [K, N]");
  }
  return {a[g.transpose_a ? 1 : 0], a[g.transpose_a ? 0 : 1], b[g.transpose_b ? 0 : 1]};
}

Shape infer_gemm(const GemmAttributes& g, InputViews inputs) {
  GemmShape shape = gemm_shape(g, inputs[0].shape, inputs[1].shape);
  Shape y{shape.rows, shape.cols};
  if (inputs.size() > 2 && inputs[2].present() && broadcast(inputs[2].shape, y) != y) {
    fail(ErrorKind::kShapeMismatch, "got C of shape ", to_string(inputs[2].shape),
         ", expected one that broadcasts to ", to_string(y));
  }
  return y;
}

class Gemm : public Op {
 public:
  Gemm(const GemmKernels& kernels, const GemmAttributes& attributes)
      : kernels_(kernels), g_(attributes) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = infer_gemm(g_, inputs);
  }

  void run(const OpRun& run) const override {
    bool add = run.has_input(2);
    if (add) {
      run.parallel(static_cast<int64_t>(run.requests()), [&](int64_t r, int) {
        fill_with_c(run.input(2).view(static_cast<size_t>(r)),
                    run.output(0).view(static_cast<size_t>(r)));
      });
    }
    auto products = [&](size_t r) {
      ConstTensorView a = run.input(0).view(r);
      ConstTensorView b = run.input(1).view(r);
      GemmShape shape = gemm_shape(g_, a.shape, b.shape);
      return DynamicProducts{.a = {a.as<float>(), a.shape[1], g_.transpose_a},
                             .b = {b.as<float>(), b.shape[1], g_.transpose_b},
                             .c = run.output(0).view(r).as<float>(),
                             .rows = shape.rows,
                             .k = shape.k,
                             .cols = shape.cols,
                             .batch = {},
                             .a_steps = {},
                             .b_steps = {}};
    };
    gemm_dynamic(run, kernels_, products, g_.alpha, add);
  }

 private:
  // Y = beta * C, to which the product is then added.
  void fill_with_c(ConstTensorView c, TensorView y) const {
    Strides strides = broadcast_strides(c.shape, y.shape);
    const float* from = c.as<float>();
    float* to = y.as<float>();
    for (int64_t row = 0; row < y.shape[0]; ++row) {
      for (int64_t col = 0; col < y.shape[1]; ++col) {
        *to++ = g_.beta * from[row * strides[0] + col * strides[1]];
      }
    }
  }

  const GemmKernels& kernels_;
  GemmAttributes g_;
};

template <class T>
class NaiveGemm : public PerRequestOp {
 public:
  explicit NaiveGemm(const GemmAttributes& attributes) : g_(attributes) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = infer_gemm(g_, inputs);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    using Sum = SumType<T>;
    GemmShape shape = gemm_shape(g_, inputs[0].shape, inputs[1].shape);
    Matrix a{nullptr, inputs[0].shape[1], g_.transpose_a};
    Matrix b{nullptr, inputs[1].shape[1], g_.transpose_b};
    bool add = inputs.size() > 2 && inputs[2].present();
    Strides c = add ? broadcast_strides(inputs[2].shape, outputs[0].shape) : Strides{};
    T* y = outputs[0].as<T>();
    for (int64_t row = 0; row < shape.rows; ++row) {
      for (int64_t col = 0; col < shape.cols; ++col) {
        const T* left = inputs[0].as<T>() + row * (a.transposed ? 1 : a.stride);
        const T* right = inputs[1].as<T>() + col * (b.transposed ? b.stride : 1);
        Sum sum =
            dot(left, a.transposed ? a.stride : 1, right, b.transposed ? 1 : b.stride, shape.k);
        sum *= static_cast<Sum>(g_.alpha);
        if (add) {
          sum += static_cast<Sum>(g_.beta) *
                 static_cast<Sum>(inputs[2].as<T>()[row * c[0] + col * c[1]]);
        }
        *y++ = static_cast<T>(sum);
      }
    }
  }

 private:
  GemmAttributes g_;
};

// True if C is absent or one constant row that every row of Y gets: then it is a bias.
bool c_is_bias(const NodeSpec& spec, int64_t cols) {
  if (!spec.has_input(2)) return true;
  if (!spec.is_constant(2)) return false;
  const Shape& shape = spec.constants[2].shape;
  return shape == Shape{cols} || shape == Shape{1, cols};
}

std::unique_ptr<Op> make_packed(const NodeSpec& spec, const GemmKernels& kernels,
                                const GemmAttributes& g) {
  const ConstTensorView& b = spec.constants[1];
  int64_t k = b.shape[g.transpose_b ? 1 : 0];
  int64_t cols = b.shape[g.transpose_b ? 0 : 1];
  PackedLinear::Parts parts;
  parts.panels =
      PackedPanels(spec, kernels, {b.as<float>(), b.shape[1], g.transpose_b}, k, cols, g.alpha);
  parts.consumed = 1u << 1 | 1u << 2;
  parts.matrices_only = true;
  if (spec.has_input(2)) {
    const ConstTensorView& c = spec.constants[2];
    parts.bias = spec.pack(c.bytes(), [&](std::byte* to) {
      std::ranges::transform(c.span<float>(), reinterpret_cast<float*>(to),
                             [&](float value) { return g.beta * value; });
    });
  }
  return std::make_unique<PackedLinear>(kernels, std::move(parts));
}

}  // namespace

std::unique_ptr<Op> make_gemm(const NodeSpec& spec) {
  if (spec.inputs() < 2) spec.invalid(str("got ", spec.inputs(), " inputs, expected 2 or 3"));
  GemmAttributes g{.alpha = spec.float_or("alpha", 1.0f),
                   .beta = spec.float_or("beta", 1.0f),
                   .transpose_a = spec.int_or("transA", 0) != 0,
                   .transpose_b = spec.int_or("transB", 0) != 0};
  DType dtype = spec.input_dtypes[0];
  if (spec.input_dtypes[1] != dtype || (spec.has_input(2) && spec.input_dtypes[2] != dtype)) {
    spec.invalid("expected inputs of one dtype");
  }
  const GemmKernels& kernels = HEADRACE_KERNELS(spec.isa, gemm_kernels);
  if (dtype == DType::kF32) {
    bool packed = !g.transpose_a && spec.is_constant(1) && spec.constants[1].shape.rank() == 2 &&
                  c_is_bias(spec, spec.constants[1].shape[g.transpose_b ? 0 : 1]);
    if (packed) return make_packed(spec, kernels, g);
    return std::make_unique<Gemm>(kernels, g);
  }
  bool is_float = visit_dtype(Floats{}, dtype, []<class>() {});
  if (!is_float && (g.alpha != 1.0f || g.beta != 1.0f)) {
    spec.unsupported("alpha and beta other than 1 on integers");
  }
  std::unique_ptr<Op> op;
  if (!visit_dtype(Numbers{}, dtype, [&]<class T>() { op = std::make_unique<NaiveGemm<T>>(g); })) {
    spec.unsupported(str("got dtype ", name_of(dtype), ", expected numbers"));
  }
  return op;
}

}  // namespace headrace
