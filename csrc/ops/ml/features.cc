// ArrayFeatureExtractor and FeatureVectorizer: choosing columns and putting them side by side.
#include <algorithm>
#include <cstring>

#include "ops/ml/ml_ops.h"
#include "ops/ml/row_op.h"

namespace headrace {
namespace {

class ArrayFeatureExtractor final : public PerRequestOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    int64_t chosen = inputs[1].shape.elements();
    if (x.rank() < 1 || chosen < 1) {
      fail(ErrorKind::kShapeMismatch, "got data of shape ", to_string(x), " and indices of shape ",
           to_string(inputs[1].shape), ", expected at least one dim and one index");
    }
    outputs[0] = x;
    if (x.rank() == 1) outputs[0] = {1, 1};  // a vector gives one row
    outputs[0][outputs[0].rank() - 1] = chosen;
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    int64_t size = size_of(inputs[0].dtype);
    const Shape& shape = inputs[0].shape;
    int64_t columns = shape[shape.rank() - 1];
    int64_t rows = shape.elements(0, shape.rank() - 1);
    int64_t chosen = inputs[1].elements();
    const auto* x = inputs[0].as<std::byte>();
    auto* y = outputs[0].as<std::byte>();
    for (int64_t c = 0; c < chosen; ++c) {
      auto column = element<int64_t>(inputs[1].data, c);
      if (column < 0 || column >= columns) {
        fail(ErrorKind::kExecution, "got column index ", column, ", expected 0 .. ", columns - 1);
      }
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(y + (row * chosen + c) * size, x + (row * columns + column) * size,
                    static_cast<size_t>(size));
      }
    }
  }
};

class FeatureVectorizer final : public PerRequestOp {
 public:
  explicit FeatureVectorizer(std::vector<int64_t> widths) : widths_(std::move(widths)) {
    for (int64_t width : widths_) total_ += width;
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    for (const ConstTensorView& x : inputs) {
      if (x.shape.rank() < 1 || x.shape.rank() > 2 || x.shape[0] != inputs[0].shape[0]) {
        fail(ErrorKind::kShapeMismatch, "got an input of shape ", to_string(x.shape),
             ", expected [rows] or [rows, columns], with the first input's rows");
      }
    }
    outputs[0] = {inputs[0].shape[0], total_};
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    int64_t rows = inputs[0].shape[0];
    int64_t first = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const ConstTensorView& x = inputs[i];
      int64_t columns = x.shape.rank() == 1 ? 1 : x.shape[1];
      int64_t width = widths_[i];
      with_number_type(x.dtype, [&]<class T>(T) {
        for (int64_t row = 0; row < rows; ++row) {
          float* y = outputs[0].as<float>() + row * total_ + first;
          for (int64_t c = 0; c < width; ++c) {
            // Short inputs are filled up with zeros, long ones cut.
            y[c] = c < columns ? static_cast<float>(element<T>(x.data, row * columns + c)) : 0.0f;
          }
        }
      });
      first += width;
    }
  }

 private:
  std::vector<int64_t> widths_;
  int64_t total_ = 0;
};

}  // namespace

std::unique_ptr<Op> make_array_feature_extractor(const NodeSpec& node) {
  if (node.inputs() != 2 || node.input_dtypes[1] != DType::kI64) {
    node.invalid("expected data and int64 indices");
  }
  check_output(node, 0, node.input_dtypes[0]);
  return std::make_unique<ArrayFeatureExtractor>();
}

std::unique_ptr<Op> make_feature_vectorizer(const NodeSpec& node) {
  check_output(node, 0, DType::kF32);
  std::vector<int64_t> widths = node.ints("inputdimensions");
  if (widths.size() != node.inputs() || widths.empty() || std::ranges::min(widths) < 0) {
    node.invalid(str("got ", widths.size(), " inputdimensions for ", node.inputs(),
                     " inputs, expected one each, none of them negative"));
  }
  for (DType dtype : node.input_dtypes) {
    NodeSpec one;
    one.op = node.op;
    one.name = node.name;
    one.input_dtypes = {dtype};
    checked_number_input(one);
  }
  return std::make_unique<FeatureVectorizer>(std::move(widths));
}

}  // namespace headrace
