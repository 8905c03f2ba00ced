// MatMulInteger and QLinearMatMul: products of 8-bit integers less their zero points, exact in
// 32-bit integers.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/visit.h"
#include "ops/linear/linear.h"
#include "ops/linear/matmul.h"

namespace headrace {
namespace {

using Bytes = Types<int8_t, uint8_t>;

// A scale or zero point: one for all, or one per row of A or column of B.
struct Quantization {
  ConstTensorView tensor;  // absent: a zero point of 0
  int64_t step = 0;

  // `length` is that of the axis it runs along.
  Quantization(const ConstTensorView& view, int64_t length, std::string_view what) : tensor(view) {
    if (!view.present()) return;
    bool fits = view.elements() == 1 || (view.shape.rank() == 1 && view.elements() == length);
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got ", what, " of shape ", to_string(view.shape),
           ", expected a scalar or [", length, "]");
    }
    step = view.elements() == 1 ? 0 : 1;
  }
  template <class T>
  int32_t zero(int64_t i) const {
    return tensor.present() ? tensor.as<T>()[i * step] : 0;
  }
  float scale(int64_t i) const {
    if (tensor.dtype == DType::kF16) return static_cast<float>(tensor.as<Half>()[i * step]);
    return tensor.as<float>()[i * step];
  }
};

ConstTensorView input_or_absent(InputViews inputs, size_t i) {
  return i < inputs.size() ? inputs[i] : ConstTensorView{};
}

// Calls finish(row, col, sum) for every element of every product, in the order of Y.
template <class A, class B, class Finish>
void integer_products(const MatMulShape& shape, const ConstTensorView& a,
                      const Quantization& a_zero, const ConstTensorView& b,
                      const Quantization& b_zero, Finish finish) {
  const Strides steps[] = {shape.a_steps, shape.b_steps};
  Nest nest(shape.batch, steps);
  nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
    for (int64_t i = 0; i < nest.inner(); ++i) {
      const A* left = a.as<A>() + offsets[0] + i * nest.inner_stride(0);
      const B* right = b.as<B>() + offsets[1] + i * nest.inner_stride(1);
      for (int64_t row = 0; row < shape.rows; ++row) {
        for (int64_t col = 0; col < shape.cols; ++col) {
          int32_t za = a_zero.zero<A>(row);
          int32_t zb = b_zero.zero<B>(col);
          uint32_t sum = 0;  // wraps
          for (int64_t k = 0; k < shape.k; ++k) {
            sum += static_cast<uint32_t>((left[row * shape.k + k] - za) *
                                         (right[k * shape.cols + col] - zb));
          }
          finish(row, col, static_cast<int32_t>(sum));
        }
      }
    }
  });
}

template <class A, class B>
class MatMulInteger : public PerRequestOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    infer_matmul(inputs[0].shape, inputs[1].shape, outputs);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    MatMulShape shape = matmul_shape(inputs[0].shape, inputs[1].shape);
    Quantization a_zero(input_or_absent(inputs, 2), shape.rows, "a_zero_point");
    Quantization b_zero(input_or_absent(inputs, 3), shape.cols, "b_zero_point");
    int32_t* y = outputs[0].as<int32_t>();
    integer_products<A, B>(shape, inputs[0], a_zero, inputs[1], b_zero,
                           [&](int64_t, int64_t, int32_t sum) { *y++ = sum; });
  }
};

template <class A, class B, class Y>
class QLinearMatMul : public PerRequestOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    infer_matmul(inputs[0].shape, inputs[3].shape, outputs);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    MatMulShape shape = matmul_shape(inputs[0].shape, inputs[3].shape);
    Quantization a_scale(inputs[1], shape.rows, "a_scale");
    Quantization a_zero(inputs[2], shape.rows, "a_zero_point");
    Quantization b_scale(inputs[4], shape.cols, "b_scale");
    Quantization b_zero(inputs[5], shape.cols, "b_zero_point");
    Quantization y_scale(inputs[6], shape.rows, "y_scale");
    Quantization y_zero(inputs[7], shape.rows, "y_zero_point");
    Y* y = outputs[0].as<Y>();
    integer_products<A, B>(
        shape, inputs[0], a_zero, inputs[3], b_zero, [&](int64_t row, int64_t col, int32_t sum) {
          double scale = double{a_scale.scale(row)} * b_scale.scale(col) / y_scale.scale(row);
          double value = std::nearbyint(sum * scale) + y_zero.zero<Y>(row);
          constexpr double kLow = std::numeric_limits<Y>::lowest();
          constexpr double kHigh = std::numeric_limits<Y>::max();
          *y++ = static_cast<Y>(std::clamp(value, kLow, kHigh));
        });
  }
};

void require_dtype(const NodeSpec& spec, size_t input, DType dtype) {
  if (spec.has_input(input) && spec.input_dtypes[input] != dtype) {
    spec.invalid(str("got input ", input, " of dtype ", name_of(spec.input_dtypes[input]),
                     ", expected ", name_of(dtype)));
  }
}

// Calls f with the types of both operands.
template <class F>
void visit_operands(const NodeSpec& spec, size_t a, size_t b, F f) {
  bool known = false;
  visit_dtype(Bytes{}, spec.input_dtypes[a], [&]<class A>() {
    known = visit_dtype(Bytes{}, spec.input_dtypes[b],
                        [&]<class B>() { f.template operator()<A, B>(); });
  });
  if (!known) spec.unsupported("expected operands of dtype int8 or uint8");
}

}  // namespace

std::unique_ptr<Op> make_matmul_integer(const NodeSpec& spec) {
  if (spec.inputs() < 2) spec.invalid(str("got ", spec.inputs(), " inputs, expected at least 2"));
  require_dtype(spec, 2, spec.input_dtypes[0]);
  require_dtype(spec, 3, spec.input_dtypes[1]);
  std::unique_ptr<Op> op = make_packed_matmul_integer(spec);
  if (op) return op;
  visit_operands(spec, 0, 1,
                 [&]<class A, class B>() { op = std::make_unique<MatMulInteger<A, B>>(); });
  return op;
}

std::unique_ptr<Op> make_qlinear_matmul(const NodeSpec& spec) {
  if (spec.inputs() != 8) spec.invalid(str("got ", spec.inputs(), " inputs, expected 8"));
  require_dtype(spec, 2, spec.input_dtypes[0]);
  require_dtype(spec, 5, spec.input_dtypes[3]);
  for (size_t scale : {size_t{1}, size_t{4}, size_t{6}}) {
    if (spec.input_dtypes[scale] != DType::kF32 && spec.input_dtypes[scale] != DType::kF16) {
      spec.unsupported(str("got a scale of dtype ", name_of(spec.input_dtypes[scale]),
                           ", expected float32 or float16"));
    }
  }
  std::unique_ptr<Op> op;
  visit_operands(spec, 0, 3, [&]<class A, class B>() {
    visit_dtype(Bytes{}, spec.input_dtypes[7],
                [&]<class Y>() { op = std::make_unique<QLinearMatMul<A, B, Y>>(); });
  });
  if (!op) spec.unsupported("expected a y_zero_point of dtype int8 or uint8");
  return op;
}

}  // namespace headrace
