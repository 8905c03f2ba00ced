// LabelEncoder, CategoryMapper and OneHotEncoder: looking values up among keys.
#include <cmath>
#include <cstring>

#include "ops/ml/key_index.h"
#include "ops/ml/ml_ops.h"
#include "ops/ml/row_op.h"

namespace headrace {
namespace {

// How elements of the input are compared with keys.
enum class KeyKind { kString, kInt, kFloat };

KeyKind key_kind_of(const NodeSpec& node) {
  switch (node.inputs() > 0 ? node.input_dtypes[0] : DType::kNone) {
    case DType::kString:
      return KeyKind::kString;
    case DType::kI64:
    case DType::kI32:
    case DType::kI16:
      return KeyKind::kInt;
    case DType::kF32:
    case DType::kF64:
      return KeyKind::kFloat;
    default:
      node.unsupported(str("got an input of ", name_of(node.input_dtypes.at(0)),
                           ", expected string, int64, int32, int16, float32 or float64"));
  }
}

// The position of element i of x among the keys, or -1.
int64_t find_element(const KeyIndex& keys, const ConstTensorView& x, int64_t i) {
  switch (x.dtype) {
    case DType::kString:
      return keys.find(element<StringRef>(x.data, i).view());
    case DType::kI64:
      return keys.find(element<int64_t>(x.data, i));
    case DType::kI32:
      return keys.find(int64_t{element<int32_t>(x.data, i)});
    case DType::kI16:
      return keys.find(int64_t{element<int16_t>(x.data, i)});
    case DType::kF32:
      return keys.find(double{element<float>(x.data, i)});
    default:
      return keys.find(element<double>(x.data, i));
  }
}

// Values to choose from, ready to be copied into the output; strings point into `texts_`.
class ValueTable {
 public:
  // `values` and then the default.
  ValueTable(DType dtype, const std::vector<double>& values) : size_(size_of(dtype)) {
    for (double value : values) {
      dtype == DType::kF32 ? append(static_cast<float>(value)) : append(value);
    }
  }
  ValueTable(DType dtype, const std::vector<int64_t>& values) : size_(size_of(dtype)) {
    for (int64_t value : values) {
      switch (dtype) {
        case DType::kI16:
          append(static_cast<int16_t>(value));
          break;
        case DType::kI32:
          append(static_cast<int32_t>(value));
          break;
        default:
          append(value);
      }
    }
  }
  explicit ValueTable(std::vector<std::string> values)
      : size_(size_of(DType::kString)), texts_(std::move(values)) {
    for (const std::string& text : texts_) {
      append(StringRef{text.data(), static_cast<int64_t>(text.size())});
    }
  }
  ValueTable(const ValueTable&) = delete;
  ValueTable(ValueTable&&) = default;

  int64_t values() const { return static_cast<int64_t>(bytes_.size()) / size_ - 1; }
  // Writes value `index`, or the default for -1, as element i of y.
  void write(int64_t index, void* y, int64_t i) const {
    int64_t at = index < 0 ? values() : index;
    std::memcpy(static_cast<std::byte*>(y) + i * size_, bytes_.data() + at * size_,
                static_cast<size_t>(size_));
  }

 private:
  template <class T>
  void append(T value) {
    size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
  }

  int64_t size_;
  std::vector<std::byte> bytes_;
  std::vector<std::string> texts_;
};

class LabelEncoder final : public ElementOp {
 public:
  LabelEncoder(KeyIndex keys, ValueTable values)
      : keys_(std::move(keys)), values_(std::move(values)) {}

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    for (int64_t i = begin; i < end; ++i) {
      values_.write(find_element(keys_, x, i), outputs[0].data, i);
    }
  }

 private:
  KeyIndex keys_;
  ValueTable values_;
};

// The list attribute `plural` or, from opset 4 on, the tensor `tensor`.
template <class T>
std::vector<T> list_of(const NodeSpec& node, std::string_view plural, std::string_view tensor) {
  std::string_view name = node.has(plural) ? plural : tensor;
  if constexpr (std::is_same_v<T, std::string>) {
    return node.strings(name);
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return node.ints(name);
  } else {
    return node.floats(name);
  }
}

KeyIndex label_keys(const NodeSpec& node) {
  switch (key_kind_of(node)) {
    case KeyKind::kString:
      return KeyIndex(list_of<std::string>(node, "keys_strings", "keys_tensor"));
    case KeyKind::kInt:
      return KeyIndex(list_of<int64_t>(node, "keys_int64s", "keys_tensor"));
    default:
      return KeyIndex(list_of<double>(node, "keys_floats", "keys_tensor"));
  }
}

ValueTable label_values(const NodeSpec& node) {
  bool own_default = node.has("default_tensor");
  DType dtype = node.output_dtypes.at(0);
  switch (dtype) {
    case DType::kString: {
      auto values = list_of<std::string>(node, "values_strings", "values_tensor");
      values.push_back(own_default ? node.strings("default_tensor").at(0)
                                   : node.string_or("default_string", "_Unused"));
      return ValueTable(std::move(values));
    }
    case DType::kI64:
    case DType::kI32:
    case DType::kI16: {
      auto values = list_of<int64_t>(node, "values_int64s", "values_tensor");
      values.push_back(own_default ? node.ints("default_tensor").at(0)
                                   : node.int_or("default_int64", -1));
      return {dtype, values};
    }
    case DType::kF32:
    case DType::kF64: {
      auto values = list_of<double>(node, "values_floats", "values_tensor");
      values.push_back(own_default ? node.floats("default_tensor").at(0)
                                   : double{node.float_or("default_float", -0.0f)});
      return {dtype, values};
    }
    default:
      node.unsupported(str("got an output of ", name_of(dtype),
                           ", expected string, int64, int32, int16, float32 or float64"));
  }
}

std::vector<int64_t> iota(size_t n) {
  std::vector<int64_t> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = static_cast<int64_t>(i);
  return values;
}

// Strings to integers or back, as the input's dtype says.
std::unique_ptr<Op> make_string_int_encoder(const NodeSpec& node, std::vector<std::string> strings,
                                            std::vector<int64_t> ints) {
  if (strings.size() != ints.size()) {
    node.invalid(str("got ", strings.size(), " strings and ", ints.size(), " integers, expected ",
                     "as many"));
  }
  if (key_kind_of(node) == KeyKind::kString) {
    check_output(node, 0, DType::kI64);
    ints.push_back(node.int_or("default_int64", -1));
    return std::make_unique<LabelEncoder>(KeyIndex(std::move(strings)),
                                          ValueTable(DType::kI64, ints));
  }
  check_output(node, 0, DType::kString);
  if (key_kind_of(node) != KeyKind::kInt) {
    node.unsupported(
        str("got an input of ", name_of(node.input_dtypes[0]), ", expected string or int64"));
  }
  strings.push_back(node.string_or("default_string", "_Unused"));
  return std::make_unique<LabelEncoder>(KeyIndex(ints), ValueTable(std::move(strings)));
}

class OneHotEncoder final : public ElementOp {
 public:
  OneHotEncoder(KeyIndex keys, bool zeros) : keys_(std::move(keys)), zeros_(zeros) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
    outputs[0].push_back(keys_.size());
  }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    int64_t n = keys_.size();
    float* y = outputs[0].as<float>() + begin * n;
    std::fill(y, y + (end - begin) * n, 0.0f);
    for (int64_t i = begin; i < end; ++i, y += n) {
      int64_t at = find(x, i);
      if (at >= 0) {
        y[at] = 1.0f;
      } else if (!zeros_) {
        fail(ErrorKind::kExecution, "got an unknown category in element ", i,
             ", expected one of the ", n, " known ones, as zeros=0 demands");
      }
    }
  }

 private:
  // Floating-point input is cut to integers.
  int64_t find(const ConstTensorView& x, int64_t i) const {
    if (x.dtype != DType::kF32 && x.dtype != DType::kF64) return find_element(keys_, x, i);
    double value =
        x.dtype == DType::kF32 ? double{element<float>(x.data, i)} : element<double>(x.data, i);
    constexpr double kBound = 9e18;  // inside what int64 holds
    if (!(std::abs(value) < kBound)) return -1;
    return keys_.find(static_cast<int64_t>(value));
  }

  KeyIndex keys_;
  bool zeros_;
};

}  // namespace

std::unique_ptr<Op> make_label_encoder(const NodeSpec& node) {
  if (node.has("classes_strings")) {  // opset 1
    std::vector<std::string> classes = node.strings("classes_strings");
    size_t n = classes.size();
    return make_string_int_encoder(node, std::move(classes), iota(n));
  }
  KeyIndex keys = label_keys(node);
  ValueTable values = label_values(node);
  if (keys.size() != values.values() || keys.size() == 0) {
    node.invalid(str("got ", keys.size(), " keys of the input's dtype and ", values.values(),
                     " values of the output's dtype, expected as many, and at least one"));
  }
  return std::make_unique<LabelEncoder>(std::move(keys), std::move(values));
}

std::unique_ptr<Op> make_category_mapper(const NodeSpec& node) {
  return make_string_int_encoder(node, node.strings("cats_strings"), node.ints("cats_int64s"));
}

std::unique_ptr<Op> make_one_hot_encoder(const NodeSpec& node) {
  check_output(node, 0, DType::kF32);
  bool strings = key_kind_of(node) == KeyKind::kString;
  KeyIndex keys =
      strings ? KeyIndex(node.strings("cats_strings")) : KeyIndex(node.ints("cats_int64s"));
  if (keys.size() == 0) {
    node.invalid(str("got no ", strings ? "cats_strings" : "cats_int64s", " for an input of ",
                     name_of(node.input_dtypes[0])));
  }
  return std::make_unique<OneHotEncoder>(std::move(keys), node.int_or("zeros", 1) != 0);
}

}  // namespace headrace
