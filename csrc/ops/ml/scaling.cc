// Imputer, Scaler, Normalizer and Binarizer: number in, number out.
#include <algorithm>
#include <cmath>

#include "ops/ml/ml_ops.h"
#include "ops/ml/row_op.h"

namespace headrace {
namespace {

// One value for all columns, or one for each.
void check_columns(const Shape& shape, size_t values, std::string_view what) {
  int64_t columns = shape.rank() == 0 ? 1 : shape[shape.rank() - 1];
  if (values != 1 && columns != static_cast<int64_t>(values)) {
    fail(ErrorKind::kShapeMismatch, "got input of shape ", to_string(shape), ", expected ", values,
         " columns, as many as ", what);
  }
}

template <class T>
class Imputer final : public ElementOp {
 public:
  Imputer(std::vector<T> imputed, T replaced) : imputed_(std::move(imputed)), replaced_(replaced) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_columns(inputs[0].shape, imputed_.size(), "imputed values");
    outputs[0] = inputs[0].shape;
  }
  bool can_overwrite(size_t input) const override { return input == 0; }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    auto columns = static_cast<int64_t>(imputed_.size());
    T* y = outputs[0].as<T>();
    bool nan = replaced_ != replaced_;
    for (int64_t i = begin; i < end; ++i) {
      T value = element<T>(x.data, i);
      bool missing = nan ? value != value : value == replaced_;
      y[i] = missing ? imputed_[static_cast<size_t>(i % columns)] : value;
    }
  }

 private:
  std::vector<T> imputed_;
  T replaced_;
};

class Scaler final : public ElementOp {
 public:
  Scaler(std::vector<double> offset, std::vector<double> scale)
      : offset_(std::move(offset)), scale_(std::move(scale)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_columns(inputs[0].shape, offset_.size(), "offsets");
    check_columns(inputs[0].shape, scale_.size(), "scales");
    outputs[0] = inputs[0].shape;
  }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    size_t n_offset = offset_.size();
    size_t n_scale = scale_.size();
    float* y = outputs[0].as<float>();
    with_number_type(x.dtype, [&]<class T>(T) {
      for (int64_t i = begin; i < end; ++i) {
        auto at = static_cast<size_t>(i);
        double value = static_cast<double>(element<T>(x.data, i));
        y[i] = static_cast<float>((value - offset_[at % n_offset]) * scale_[at % n_scale]);
      }
    });
  }

 private:
  std::vector<double> offset_;
  std::vector<double> scale_;
};

enum class Norm { kMax, kL1, kL2 };

class Normalizer final : public TableOp {
 public:
  explicit Normalizer(Norm norm) : norm_(norm) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_table(inputs[0].shape, -1);
    outputs[0] = inputs[0].shape;
  }

 protected:
  int64_t min_rows() const override { return 512; }
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    int64_t columns = columns_of(x.shape);
    float* y = outputs[0].as<float>();
    with_number_type(x.dtype, [&]<class T>(T) {
      for (int64_t row = begin * columns; row < end * columns; row += columns) {
        double norm = 0;
        for (int64_t c = 0; c < columns; ++c) {
          double size = std::abs(static_cast<double>(element<T>(x.data, row + c)));
          norm = norm_ == Norm::kMax  ? std::max(norm, size)
                 : norm_ == Norm::kL1 ? norm + size
                                      : norm + size * size;
        }
        if (norm_ == Norm::kL2) norm = std::sqrt(norm);
        if (norm == 0) norm = 1;  // a row of zeros stays one
        for (int64_t c = 0; c < columns; ++c) {
          double value = static_cast<double>(element<T>(x.data, row + c));
          y[row + c] = static_cast<float>(value / norm);
        }
      }
    });
  }

 private:
  Norm norm_;
};

template <class T>
class Binarizer final : public ElementOp {
 public:
  explicit Binarizer(float threshold) : threshold_(threshold) {}
  bool can_overwrite(size_t input) const override { return input == 0; }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    T* y = outputs[0].as<T>();
    for (int64_t i = begin; i < end; ++i) {
      y[i] = static_cast<T>(static_cast<double>(element<T>(x.data, i)) > threshold_ ? 1 : 0);
    }
  }

 private:
  double threshold_;
};

template <class T>
std::unique_ptr<Op> make_typed_imputer(const NodeSpec& node) {
  std::vector<T> imputed;
  T replaced;
  if constexpr (std::is_floating_point_v<T>) {
    for (double value : node.floats("imputed_value_floats")) {
      imputed.push_back(static_cast<T>(value));
    }
    replaced = static_cast<T>(node.float_or("replaced_value_float", 0.0f));
  } else {
    for (int64_t value : node.ints("imputed_value_int64s")) {
      imputed.push_back(static_cast<T>(value));
    }
    replaced = static_cast<T>(node.int_or("replaced_value_int64", 0));
  }
  if (imputed.empty()) {
    node.invalid(str("got no imputed values for an input of ", name_of(kDTypeOf<T>)));
  }
  return std::make_unique<Imputer<T>>(std::move(imputed), replaced);
}

}  // namespace

std::unique_ptr<Op> make_imputer(const NodeSpec& node) {
  DType dtype = checked_number_input(node);
  check_output(node, 0, dtype);
  std::unique_ptr<Op> op;
  with_number_type(dtype, [&]<class T>(T) { op = make_typed_imputer<T>(node); });
  return op;
}

std::unique_ptr<Op> make_scaler(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 0, DType::kF32);
  std::vector<double> offset = node.floats("offset");
  std::vector<double> scale = node.floats("scale");
  if (offset.empty() || scale.empty()) {
    node.invalid(str("got ", offset.size(), " offsets and ", scale.size(),
                     " scales, expected at least one of each"));
  }
  return std::make_unique<Scaler>(std::move(offset), std::move(scale));
}

std::unique_ptr<Op> make_normalizer(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 0, DType::kF32);
  std::string norm = node.string_or("norm", "MAX");
  if (norm == "MAX") return std::make_unique<Normalizer>(Norm::kMax);
  if (norm == "L1") return std::make_unique<Normalizer>(Norm::kL1);
  if (norm == "L2") return std::make_unique<Normalizer>(Norm::kL2);
  node.invalid(str("got norm '", norm, "', expected MAX, L1 or L2"));
}

std::unique_ptr<Op> make_binarizer(const NodeSpec& node) {
  DType dtype = checked_number_input(node);
  check_output(node, 0, dtype);
  float threshold = node.float_or("threshold", 0.0f);
  std::unique_ptr<Op> op;
  with_number_type(dtype, [&]<class T>(T) { op = std::make_unique<Binarizer<T>>(threshold); });
  return op;
}

}  // namespace headrace
