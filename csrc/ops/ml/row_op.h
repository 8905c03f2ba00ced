// Base of the ml ops: each works on the rows of its first input, one by one.
#pragma once

#include <cstring>

#include "ops/op.h"
#include "ops/rows.h"

namespace headrace {

// Element i of a tensor that may lie anywhere in memory.
template <class T>
T element(const void* data, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(data) + i * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

// Calls body(T{}) with the C++ type of a numeric dtype that ai.onnx.ml ops take.
template <class Body>
void with_number_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32:
      return body(float{});
    case DType::kF64:
      return body(double{});
    case DType::kI64:
      return body(int64_t{});
    case DType::kI32:
      return body(int32_t{});
    default:
      fail(ErrorKind::kExecution, "got ", name_of(dtype), " past the factory; this is a bug");
  }
}

// Throws Error(kUnsupportedOp) unless input 0 is float32, float64, int64 or int32.
inline DType checked_number_input(const NodeSpec& node) {
  DType dtype = node.inputs() > 0 ? node.input_dtypes[0] : DType::kNone;
  if (dtype != DType::kF32 && dtype != DType::kF64 && dtype != DType::kI64 &&
      dtype != DType::kI32) {
    node.unsupported(
        str("got an input of ", name_of(dtype), ", expected float32, float64, int64 or int32"));
  }
  return dtype;
}

// Throws Error(kInvalidModel) unless output `i`, where it is wanted, has this dtype.
inline void check_output(const NodeSpec& node, size_t i, DType expected) {
  if (i >= node.output_dtypes.size()) return;
  DType got = node.output_dtypes[i];
  if (got != DType::kNone && got != expected) {
    node.invalid(str("got an output ", i, " of ", name_of(got), ", expected ", name_of(expected)));
  }
}

class RowOp : public Op {
 public:
  void run(const OpRun& run) const final {
    auto rows = [&](size_t r) { return rows_of(run.input(0).shape(r)); };
    for_rows(run, min_rows(), rows, [&](size_t r, int64_t begin, int64_t end) {
      TensorView outputs[kMaxOutputs];
      for (size_t o = 0; o < run.outputs(); ++o) {
        if (run.has_output(o)) outputs[o] = run.output(o).view(r);
      }
      run_rows(run.input(0).view(r), {outputs, run.outputs()}, begin, end);
    });
  }

 protected:
  static constexpr size_t kMaxOutputs = 2;

  virtual int64_t rows_of(const Shape& shape) const = 0;
  // Rows worth a thread of their own.
  virtual int64_t min_rows() const = 0;
  // Computes rows [begin, end) of one Request; absent outputs have null data.
  virtual void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                        int64_t end) const = 0;
};

// A RowOp in which every element is a row, and the output has the input's shape.
class ElementOp : public RowOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }

 protected:
  int64_t rows_of(const Shape& shape) const final { return shape.elements(); }
  int64_t min_rows() const override { return kMinElementsPerThread / 4; }
};

// A RowOp on tables [rows, columns]; a vector is one row.
class TableOp : public RowOp {
 protected:
  int64_t rows_of(const Shape& shape) const final { return shape.rank() == 1 ? 1 : shape[0]; }
  static int64_t columns_of(const Shape& shape) { return shape[shape.rank() - 1]; }
  // Throws Error(kShapeMismatch) unless `shape` is a table with so many columns (-1: any number).
  static void check_table(const Shape& shape, int64_t columns) {
    if (shape.rank() < 1 || shape.rank() > 2 || (columns >= 0 && columns_of(shape) != columns)) {
      fail(ErrorKind::kShapeMismatch, "got a table of shape ", to_string(shape),
           ", expected [rows, ", columns < 0 ? std::string("columns") : std::to_string(columns),
           "]");
    }
  }
};

}  // namespace headrace
