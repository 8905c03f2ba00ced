#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::run_one;
using test::run_op;
using test::Tensor;
using test::Tensors;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Ints = std::vector<int64_t>;
using Floats = std::vector<double>;
using Strings = std::vector<std::string>;

NodeSpec node(std::string op, std::vector<DType> inputs, std::vector<DType> outputs) {
  NodeSpec spec;
  spec.op = "ai.onnx.ml." + std::move(op);
  spec.name = "node";
  spec.opset = 4;
  spec.input_dtypes = std::move(inputs);
  spec.output_dtypes = std::move(outputs);
  return spec;
}

// Strings of results point into their op, so ops stay.
Tensors run(const NodeSpec& spec, const Tensors& inputs) {
  static std::vector<std::unique_ptr<Op>> ops;
  ops.push_back(OpRegistry::global().make(spec));
  return run_one(*ops.back(), spec.output_dtypes, inputs, 2);
}

Tensor strings(const Shape& shape, const std::vector<const char*>& texts) {
  std::vector<StringRef> refs;
  for (const char* text : texts) refs.push_back({text, static_cast<int64_t>(std::strlen(text))});
  return Tensor::of(shape, refs);
}

Strings texts_of(const Tensor& tensor) {
  Strings texts;
  for (const StringRef& ref : tensor.values<StringRef>()) texts.emplace_back(ref.view());
  return texts;
}

template <class T>
void check_values(const Tensor& got, const Shape& shape, const std::vector<T>& expected) {
  HR_CHECK_EQ(to_string(got.shape), to_string(shape));
  std::vector<T> values = got.values<T>();
  HR_CHECK_EQ(values.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) HR_CHECK_NEAR(values[i], expected[i], 1e-6);
}

HR_TEST(ml_label_encoder_maps_every_kind_of_key) {
  NodeSpec spec = node("LabelEncoder", {DType::kString}, {DType::kI64});
  spec.attributes = {{"keys_strings", Strings{"a", "b", ""}}, {"values_int64s", Ints{10, 20, 30}}};
  check_values<int64_t>(run(spec, {strings({4}, {"b", "", "c", "a"})})[0], {4}, {20, 30, -1, 10});

  spec = node("LabelEncoder", {DType::kF32}, {DType::kString});
  spec.attributes = {{"keys_floats", Floats{1.5, kNan, 0.0}},
                     {"values_strings", Strings{"x", "nan", "zero"}},
                     {"default_string", std::string("?")}};
  HR_CHECK(texts_of(run(spec, {Tensor::of<float>({2, 2}, {kNan, 1.5f, -0.0f, 7})})[0]) ==
           (Strings{"nan", "x", "zero", "?"}));

  spec = node("LabelEncoder", {DType::kI64}, {DType::kF32});
  spec.attributes = {{"keys_int64s", Ints{3, -4}}, {"values_floats", Floats{0.5, 2.0}}};
  Tensor got = run(spec, {Tensor::of<int64_t>({3}, {-4, 3, 9})})[0];
  check_values<float>(got, {3}, {2.0f, 0.5f, 0.0f});
  HR_CHECK(std::signbit(got.values<float>()[2]));  // the default is -0
}

HR_TEST(ml_label_encoder_takes_tensor_attributes) {
  NodeSpec spec = node("LabelEncoder", {DType::kI16}, {DType::kF64});
  spec.attributes = {{"keys_tensor", Ints{1, 2}},
                     {"values_tensor", Floats{0.1, 0.2}},
                     {"default_tensor", Floats{-5.0}}};
  check_values<double>(run(spec, {Tensor::of<int16_t>({3}, {2, 7, 1})})[0], {3}, {0.2, -5.0, 0.1});
}

HR_TEST(ml_label_encoder_refuses_lists_that_do_not_fit) {
  NodeSpec spec = node("LabelEncoder", {DType::kString}, {DType::kI64});
  spec.attributes = {{"keys_strings", Strings{"a", "b"}}, {"values_int64s", Ints{1}}};
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec.attributes = {{"keys_int64s", Ints{1}}, {"values_int64s", Ints{1}}};
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
}

HR_TEST(ml_label_encoder_of_opset_1_goes_both_ways) {
  NodeSpec spec = node("LabelEncoder", {DType::kString}, {DType::kI64});
  spec.attributes = {{"classes_strings", Strings{"a", "b"}}};
  check_values<int64_t>(run(spec, {strings({2}, {"b", "z"})})[0], {2}, {1, -1});
  spec.input_dtypes = {DType::kI64};
  spec.output_dtypes = {DType::kString};
  HR_CHECK(texts_of(run(spec, {Tensor::of<int64_t>({2}, {0, 5})})[0]) == (Strings{"a", "_Unused"}));
}

HR_TEST(ml_category_mapper_maps_strings_to_integers) {
  NodeSpec spec = node("CategoryMapper", {DType::kString}, {DType::kI64});
  spec.attributes = {{"cats_strings", Strings{"u", "v"}}, {"cats_int64s", Ints{8, 9}}};
  check_values<int64_t>(run(spec, {strings({2}, {"v", "w"})})[0], {2}, {9, -1});
}

HR_TEST(ml_one_hot_encoder_appends_a_dim) {
  NodeSpec spec = node("OneHotEncoder", {DType::kString}, {DType::kF32});
  spec.attributes = {{"cats_strings", Strings{"a", "b"}}};
  check_values<float>(run(spec, {strings({3, 1}, {"b", "c", "a"})})[0], {3, 1, 2},
                      {0, 1, 0, 0, 1, 0});
  spec.input_dtypes = {DType::kF32};
  spec.attributes = {{"cats_int64s", Ints{1, 2}}};
  check_values<float>(run(spec, {Tensor::of<float>({3}, {2.7f, kNan, 1e30f})})[0], {3, 2},
                      {0, 1, 0, 0, 0, 0});
  spec.attributes["zeros"] = int64_t{0};
  HR_CHECK_THROWS(run(spec, {Tensor::of<float>({1}, {3.0f})}), Error);
}

HR_TEST(ml_imputer_replaces_nan_or_a_value) {
  NodeSpec spec = node("Imputer", {DType::kF32}, {DType::kF32});
  spec.attributes = {{"imputed_value_floats", Floats{10, 20}},
                     {"replaced_value_float", double{kNan}}};
  check_values<float>(run(spec, {Tensor::of<float>({2, 2}, {kNan, 1, 2, kNan})})[0], {2, 2},
                      {10, 1, 2, 20});
  HR_CHECK_THROWS(run(spec, {Tensor::of<float>({1, 3}, {1, 2, 3})}), Error);
  spec = node("Imputer", {DType::kI64}, {DType::kI64});
  spec.attributes = {{"imputed_value_int64s", Ints{7}}, {"replaced_value_int64", int64_t{-1}}};
  check_values<int64_t>(run(spec, {Tensor::of<int64_t>({3}, {-1, 0, 4})})[0], {3}, {7, 0, 4});
}

HR_TEST(ml_scaler_scales_columns) {
  NodeSpec spec = node("Scaler", {DType::kI64}, {DType::kF32});
  spec.attributes = {{"offset", Floats{1, 2}}, {"scale", Floats{0.5}}};
  check_values<float>(run(spec, {Tensor::of<int64_t>({2, 2}, {1, 2, 3, 4})})[0], {2, 2},
                      {0, 0, 1, 1});
}

HR_TEST(ml_normalizer_divides_rows_by_their_norm) {
  NodeSpec spec = node("Normalizer", {DType::kF64}, {DType::kF32});
  Tensor x = Tensor::of<double>({2, 2}, {3, -4, 0, 0});
  spec.attributes["norm"] = std::string("L2");
  check_values<float>(run(spec, {x})[0], {2, 2}, {0.6f, -0.8f, 0, 0});
  spec.attributes["norm"] = std::string("L1");
  check_values<float>(run(spec, {x})[0], {2, 2}, {3 / 7.0f, -4 / 7.0f, 0, 0});
  spec.attributes["norm"] = std::string("MAX");
  check_values<float>(run(spec, {x})[0], {2, 2}, {0.75f, -1, 0, 0});
}

HR_TEST(ml_binarizer_keeps_the_dtype) {
  NodeSpec spec = node("Binarizer", {DType::kI32}, {DType::kI32});
  spec.attributes["threshold"] = 1.5;
  check_values<int32_t>(run(spec, {Tensor::of<int32_t>({3}, {1, 2, -7})})[0], {3}, {0, 1, 0});
}

HR_TEST(ml_array_feature_extractor_takes_columns_of_any_dtype) {
  NodeSpec spec = node("ArrayFeatureExtractor", {DType::kString, DType::kI64}, {DType::kString});
  Tensor index = Tensor::of<int64_t>({1, 2}, {2, 0});
  Tensor got = run(spec, {strings({2, 3}, {"a", "b", "c", "d", "e", "f"}), index})[0];
  HR_CHECK_EQ(to_string(got.shape), "[2, 2]");
  HR_CHECK(texts_of(got) == (Strings{"c", "a", "f", "d"}));
  HR_CHECK_EQ(to_string(run(spec, {strings({3}, {"a", "b", "c"}), index})[0].shape), "[1, 2]");
  HR_CHECK_THROWS(run(spec, {strings({1, 2}, {"a", "b"}), index}), Error);
}

HR_TEST(ml_feature_vectorizer_pads_and_cuts) {
  NodeSpec spec = node("FeatureVectorizer", {DType::kF32, DType::kI64}, {DType::kF32});
  spec.attributes["inputdimensions"] = Ints{1, 3};
  Tensors x = {Tensor::of<float>({2, 2}, {1, 2, 3, 4}), Tensor::of<int64_t>({2}, {5, 6})};
  check_values<float>(run(spec, x)[0], {2, 4}, {1, 5, 0, 0, 3, 6, 0, 0});
}

HR_TEST(ml_linear_classifier_with_one_score_for_two_labels) {
  NodeSpec spec = node("LinearClassifier", {DType::kF32}, {DType::kString, DType::kF32});
  spec.attributes = {{"coefficients", Floats{1, -2}},
                     {"intercepts", Floats{0.5}},
                     {"classlabels_strings", Strings{"no", "yes"}},
                     {"post_transform", std::string("LOGISTIC")}};
  Tensors got = run(spec, {Tensor::of<float>({2, 2}, {1, 0, 0, 1})});
  HR_CHECK(texts_of(got[0]) == (Strings{"yes", "no"}));
  auto p = [](float s) { return 1 / (1 + std::exp(-s)); };
  check_values<float>(got[1], {2, 2}, {p(-1.5f), p(1.5f), p(1.5f), p(-1.5f)});
  HR_CHECK_THROWS(run(spec, {Tensor::of<float>({1, 3}, {1, 2, 3})}), Error);
}

HR_TEST(ml_linear_classifier_with_a_score_per_label) {
  NodeSpec spec = node("LinearClassifier", {DType::kF64}, {DType::kI64, DType::kF32});
  spec.attributes = {{"coefficients", Floats{1, 2, 3}},
                     {"intercepts", Floats{0, 0, -1}},
                     {"classlabels_ints", Ints{5, 6, 7}},
                     {"post_transform", std::string("SOFTMAX")}};
  Tensors got = run(spec, {Tensor::of<double>({2, 1}, {0.1, 5})});
  check_values<int64_t>(got[0], {2}, {6, 7});
  double sum = std::exp(0.1) + std::exp(0.2) + std::exp(-0.7);
  HR_CHECK_NEAR(got[1].values<float>()[1], std::exp(0.2) / sum, 1e-6);
}

HR_TEST(ml_linear_regressor_with_two_targets) {
  NodeSpec spec = node("LinearRegressor", {DType::kI64}, {DType::kF32});
  spec.attributes = {{"coefficients", Floats{1, 2, 3, 4}},
                     {"intercepts", Floats{0.5, 0}},
                     {"targets", int64_t{2}}};
  check_values<float>(run(spec, {Tensor::of<int64_t>({1, 2}, {1, -1})})[0], {1, 2}, {-0.5f, -1.0f});
}

HR_TEST(ml_rows_get_the_same_bits_in_any_company) {
  NodeSpec spec = node("LinearRegressor", {DType::kF32}, {DType::kF32});
  spec.attributes = {{"coefficients", Floats{0.3, -0.7, 1.1}}, {"intercepts", Floats{0.1}}};
  auto op = OpRegistry::global().make(spec);
  std::vector<Tensors> requests;
  for (int64_t rows : {1, 0, 20000, 3}) {
    std::vector<float> x;
    for (int64_t i = 0; i < rows * 3; ++i) x.push_back(static_cast<float>(i % 97) * 0.013f);
    requests.push_back({Tensor::of({rows, 3}, x)});
  }
  auto together = run_op(*op, {DType::kF32}, requests, 3);
  for (size_t r = 0; r < requests.size(); ++r) {
    HR_CHECK(together[r][0].bytes == run_one(*op, {DType::kF32}, requests[r])[0].bytes);
  }
}

}  // namespace
}  // namespace headrace
