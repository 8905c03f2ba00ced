// MatMulInteger and QLinearMatMul: exact products of 8-bit integers.
#include <cmath>

#include "ops/quantize/quantize.h"

namespace headrace {
namespace {

// numpy's matmul of two shapes as batches of [m, k] x [k, n].
struct MatMulShape {
  Shape batch;
  int64_t m, k, n;
  Shape out;
  Strides a, b;  // of the batch dims, in matrices
};

MatMulShape matmul_shape(const Shape& a, const Shape& b) {
  if (a.rank() < 2 || b.rank() < 2 || a[a.rank() - 1] != b[b.rank() - 2]) {
    fail(ErrorKind::kShapeMismatch, "got matrices of shape ", to_string(a), " and ", to_string(b),
         ", expected at least 2 dims and as many columns as rows");
  }
  auto batch_of = [](const Shape& s) {
    return Shape(s.dims().first(static_cast<size_t>(s.rank() - 2)));
  };
  MatMulShape shape{.batch = broadcast(batch_of(a), batch_of(b)),
                    .m = a[a.rank() - 2],
                    .k = a[a.rank() - 1],
                    .n = b[b.rank() - 1],
                    .out = {},
                    .a = {},
                    .b = {}};
  shape.out = shape.batch;
  shape.out.push_back(shape.m);
  shape.out.push_back(shape.n);
  shape.a = broadcast_strides(batch_of(a), shape.batch);
  shape.b = broadcast_strides(batch_of(b), shape.batch);
  return shape;
}

// An 8-bit integer of either sign.
int32_t eight_bits(const ConstTensorView& tensor, int64_t i) {
  return tensor.dtype == DType::kI8 ? tensor.as<int8_t>()[i] : tensor.as<uint8_t>()[i];
}

// A zero point or scale: one, or one per row of A or column of B.
int64_t pick(const ConstTensorView& list, int64_t i) {
  return list.elements() == 1 ? 0 : i;
}

void require_count(const ConstTensorView& list, int64_t rows, std::string_view what) {
  if (!list.present() || list.elements() == 1 || list.elements() == rows) return;
  fail(ErrorKind::kShapeMismatch, "got ", list.elements(), " ", what, ", expected 1 or ", rows);
}

void require_bytes(const NodeSpec& spec, std::initializer_list<size_t> inputs) {
  for (size_t i : inputs) {
    if (!spec.has_input(i)) continue;
    if (spec.input_dtypes[i] != DType::kI8 && spec.input_dtypes[i] != DType::kU8) {
      unsupported_dtype(spec, i);
    }
  }
}

// Calls put(row, column, output index, sum) for every element of the product.
template <class Put>
void multiply(const ConstTensorView& a, const ConstTensorView& a_zero, const ConstTensorView& b,
              const ConstTensorView& b_zero, Put put) {
  MatMulShape shape = matmul_shape(a.shape, b.shape);
  Strides strides[2] = {shape.a, shape.b};
  Nest nest(shape.batch, strides);
  int64_t next = 0;
  nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
    for (int64_t i = 0; i < nest.inner(); ++i) {
      int64_t in_a = (offsets[0] + i * nest.inner_stride(0)) * shape.m * shape.k;
      int64_t in_b = (offsets[1] + i * nest.inner_stride(1)) * shape.k * shape.n;
      for (int64_t row = 0; row < shape.m; ++row) {
        int32_t zero_a = a_zero.present() ? eight_bits(a_zero, pick(a_zero, row)) : 0;
        for (int64_t column = 0; column < shape.n; ++column) {
          int32_t zero_b = b_zero.present() ? eight_bits(b_zero, pick(b_zero, column)) : 0;
          int64_t sum = 0;
          for (int64_t k = 0; k < shape.k; ++k) {
            sum += int64_t{eight_bits(a, in_a + row * shape.k + k) - zero_a} *
                   (eight_bits(b, in_b + k * shape.n + column) - zero_b);
          }
          put(row, column, next++, sum);
        }
      }
    }
  });
}

class MatMulInteger : public Op {
 public:
  explicit MatMulInteger(const NodeSpec& spec) { require_bytes(spec, {0, 1, 2, 3}); }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    MatMulShape shape = matmul_shape(inputs[0].shape, inputs[1].shape);
    if (inputs.size() > 2) require_count(inputs[2], shape.m, "zero points of A");
    if (inputs.size() > 3) require_count(inputs[3], shape.n, "zero points of B");
    outputs[0] = shape.out;
  }
  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      ConstTensorView zeros[2];
      for (size_t i = 0; i < 2; ++i) {
        if (run.has_input(i + 2)) zeros[i] = run.input(i + 2).view(r);
      }
      auto* out = run.output(0).view(r).as<int32_t>();
      multiply(
          run.input(0).view(r), zeros[0], run.input(1).view(r), zeros[1],
          [&](int64_t, int64_t, int64_t i, int64_t sum) { out[i] = static_cast<int32_t>(sum); });
    });
  }
};

class QLinearMatMul : public Op {
 public:
  explicit QLinearMatMul(const NodeSpec& spec) {
    require_inputs(spec, 8);
    require_bytes(spec, {0, 2, 3, 5, 7});
    for (size_t i : {1u, 4u, 6u}) {
      bool known = visit_dtype(ScaleTypes{}, spec.input_dtypes[i], [&]<class T>() {
        read_[i / 3] = [](const ConstTensorView& t, int64_t at) {
          return static_cast<float>(t.as<T>()[at]);
        };
      });
      if (!known) unsupported_dtype(spec, i);
    }
    // In 16 bits the reference rounds the product of the scales to that type first.
    rounds_to_half_ = spec.input_dtypes[1] == DType::kF16;
    if (spec.input_dtypes[1] == DType::kBF16) unsupported_dtype(spec, 1);
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    MatMulShape shape = matmul_shape(inputs[0].shape, inputs[3].shape);
    require_count(inputs[1], shape.m, "scales of A");
    require_count(inputs[2], shape.m, "zero points of A");
    require_count(inputs[4], shape.n, "scales of B");
    require_count(inputs[5], shape.n, "zero points of B");
    require_count(inputs[6], 1, "scales of Y");
    require_count(inputs[7], 1, "zero points of Y");
    outputs[0] = shape.out;
  }
  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      ConstTensorView in[8];
      for (size_t i = 0; i < 8; ++i) in[i] = run.input(i).view(r);
      TensorView out = run.output(0).view(r);
      int32_t zero = eight_bits(in[7], 0);
      float scale_y = read_[2](in[6], 0);
      bool is_signed = out.dtype == DType::kI8;
      multiply(
          in[0], in[2], in[3], in[5], [&](int64_t row, int64_t column, int64_t i, int64_t sum) {
            float scales = read_[0](in[1], pick(in[1], row)) * read_[1](in[4], pick(in[4], column));
            if (rounds_to_half_) scales = Half(scales);
            float factor = scales / scale_y;
            if (rounds_to_half_) factor = Half(factor);
            double exact = std::rint(static_cast<double>(sum) * static_cast<double>(factor) + zero);
            double low = is_signed ? -128 : 0, high = is_signed ? 127 : 255;
            auto whole = static_cast<int64_t>(std::clamp(exact, low, high));
            out.as<uint8_t>()[i] = static_cast<uint8_t>(whole);
          });
    });
  }

 private:
  float (*read_[3])(const ConstTensorView&, int64_t) = {};  // A's, B's and Y's scales
  bool rounds_to_half_ = false;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_quantized_matmul(OpRegistry& registry) {
  registry.add("MatMulInteger", make<MatMulInteger>);
  registry.add("QLinearMatMul", make<QLinearMatMul>);
}

}  // namespace headrace
