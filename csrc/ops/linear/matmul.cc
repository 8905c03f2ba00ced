// MatMul, as numpy.matmul does it: the last two dims are matrices, the others broadcast, and a
// vector stands for a row on the left and for a column on the right.
#include "ops/linear/matmul.h"

#include "ops/linear/linear.h"
#include "ops/linear/naive.h"

namespace headrace {
namespace {

Shape leading_dims(const Shape& shape) {
  return Shape(shape.dims().first(static_cast<size_t>(std::max(shape.rank() - 2, 0))));
}

Strides matrix_steps(const Shape& from, const Shape& batch, int64_t matrix) {
  Strides steps = broadcast_strides(leading_dims(from), batch);
  for (int axis = 0; axis < batch.rank(); ++axis) steps[axis] *= matrix;
  return steps;
}

}  // namespace

MatMulShape matmul_shape(const Shape& a, const Shape& b) {
  if (a.rank() == 0 || b.rank() == 0) {
    fail(ErrorKind::kShapeMismatch, "got shapes ", to_string(a), " and ", to_string(b),
         ", expected at least one dim each");
  }
  MatMulShape shape;
  shape.rows = a.rank() > 1 ? a[a.rank() - 2] : 1;
  shape.k = a[a.rank() - 1];
  shape.cols = b.rank() > 1 ? b[b.rank() - 1] : 1;
  int64_t b_rows = b.rank() > 1 ? b[b.rank() - 2] : b[0];
  if (b_rows != shape.k) {
    fail(ErrorKind::kShapeMismatch, "got shapes ", to_string(a), " and ", to_string(b),
         ", expected the right one to have ", shape.k, " rows");
  }
  shape.batch = broadcast(leading_dims(a), leading_dims(b));
  shape.a_steps = matrix_steps(a, shape.batch, shape.rows * shape.k);
  shape.b_steps = matrix_steps(b, shape.batch, shape.k * shape.cols);
  return shape;
}

void infer_matmul(const Shape& a, const Shape& b, std::span<Shape> outputs) {
  MatMulShape shape = matmul_shape(a, b);
  outputs[0] = shape.batch;
  if (a.rank() > 1) outputs[0].push_back(shape.rows);
  if (b.rank() > 1) outputs[0].push_back(shape.cols);
}

namespace {

class MatMul : public Op {
 public:
  explicit MatMul(const GemmKernels& kernels) : kernels_(kernels) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    infer_matmul(inputs[0].shape, inputs[1].shape, outputs);
  }

  void run(const OpRun& run) const override {
    auto products = [&](size_t r) {
      ConstTensorView a = run.input(0).view(r);
      ConstTensorView b = run.input(1).view(r);
      MatMulShape shape = matmul_shape(a.shape, b.shape);
      DynamicProducts p{.a = {a.as<float>(), shape.k},
                        .b = {b.as<float>(), shape.cols},
                        .c = run.output(0).view(r).as<float>(),
                        .rows = shape.rows,
                        .k = shape.k,
                        .cols = shape.cols,
                        .batch = shape.batch,
                        .a_steps = shape.a_steps,
                        .b_steps = shape.b_steps};
      if (b.shape.rank() <= 2) {  // one B for all: the matrices of A are one tall matrix
        p.rows *= shape.batch.elements();
        p.batch = {};
      }
      return p;
    };
    gemm_dynamic(run, kernels_, products, 1.0f, false);
  }

 private:
  const GemmKernels& kernels_;
};

template <class T>
class NaiveMatMul : public PerRequestOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    infer_matmul(inputs[0].shape, inputs[1].shape, outputs);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    MatMulShape shape = matmul_shape(inputs[0].shape, inputs[1].shape);
    T* c = outputs[0].as<T>();
    const Strides steps[] = {shape.a_steps, shape.b_steps};
    Nest nest(shape.batch, steps);
    nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
      for (int64_t i = 0; i < nest.inner(); ++i) {
        const T* a = inputs[0].as<T>() + offsets[0] + i * nest.inner_stride(0);
        const T* b = inputs[1].as<T>() + offsets[1] + i * nest.inner_stride(1);
        for (int64_t row = 0; row < shape.rows; ++row) {
          for (int64_t col = 0; col < shape.cols; ++col) {
            *c++ = static_cast<T>(dot(a + row * shape.k, 1, b + col, shape.cols, shape.k));
          }
        }
      }
    });
  }
};

}  // namespace

std::unique_ptr<Op> make_matmul(const NodeSpec& spec) {
  DType dtype = spec.input_dtypes[0];
  if (spec.inputs() != 2 || spec.input_dtypes[1] != dtype) {
    spec.invalid("expected two inputs of one dtype");
  }
  const GemmKernels& kernels = HEADRACE_KERNELS(spec.isa, gemm_kernels);
  if (dtype == DType::kF32 && spec.is_constant(1) && spec.constants[1].shape.rank() == 2) {
    const ConstTensorView& b = spec.constants[1];
    PackedLinear::Parts parts;
    parts.panels = PackedPanels(spec, kernels, {b.as<float>(), b.shape[1]}, b.shape[0], b.shape[1]);
    parts.consumed = 1u << 1;
    return std::make_unique<PackedLinear>(kernels, std::move(parts));
  }
  if (dtype == DType::kF32) return std::make_unique<MatMul>(kernels);
  std::unique_ptr<Op> op;
  if (!visit_dtype(Numbers{}, dtype, [&]<class T>() { op = std::make_unique<NaiveMatMul<T>>(); })) {
    spec.unsupported(str("got dtype ", name_of(dtype), ", expected numbers"));
  }
  return op;
}

}  // namespace headrace
