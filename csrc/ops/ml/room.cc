#include "ops/ml/ml_ops.h"
#include "ops/rooms.h"

namespace headrace {

void register_ml_ops(OpRegistry& registry) {
  registry.add("ai.onnx.ml.LabelEncoder", make_label_encoder);
  registry.add("ai.onnx.ml.CategoryMapper", make_category_mapper);
  registry.add("ai.onnx.ml.OneHotEncoder", make_one_hot_encoder);
  registry.add("ai.onnx.ml.Imputer", make_imputer);
  registry.add("ai.onnx.ml.Scaler", make_scaler);
  registry.add("ai.onnx.ml.Normalizer", make_normalizer);
  registry.add("ai.onnx.ml.Binarizer", make_binarizer);
  registry.add("ai.onnx.ml.ArrayFeatureExtractor", make_array_feature_extractor);
  registry.add("ai.onnx.ml.FeatureVectorizer", make_feature_vectorizer);
  registry.add("ai.onnx.ml.LinearClassifier", make_linear_classifier);
  registry.add("ai.onnx.ml.LinearRegressor", make_linear_regressor);
  registry.add("ai.onnx.ml.SVMClassifier", make_svm_classifier);
  registry.add("ai.onnx.ml.SVMRegressor", make_svm_regressor);
}

}  // namespace headrace
