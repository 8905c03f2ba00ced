// The factories of the ml room, which room.cc registers.
#pragma once

#include <memory>

#include "ops/op.h"

namespace headrace {

std::unique_ptr<Op> make_label_encoder(const NodeSpec& node);
std::unique_ptr<Op> make_category_mapper(const NodeSpec& node);
std::unique_ptr<Op> make_one_hot_encoder(const NodeSpec& node);

std::unique_ptr<Op> make_imputer(const NodeSpec& node);
std::unique_ptr<Op> make_scaler(const NodeSpec& node);
std::unique_ptr<Op> make_normalizer(const NodeSpec& node);
std::unique_ptr<Op> make_binarizer(const NodeSpec& node);

std::unique_ptr<Op> make_array_feature_extractor(const NodeSpec& node);
std::unique_ptr<Op> make_feature_vectorizer(const NodeSpec& node);

std::unique_ptr<Op> make_linear_classifier(const NodeSpec& node);
std::unique_ptr<Op> make_linear_regressor(const NodeSpec& node);
std::unique_ptr<Op> make_svm_classifier(const NodeSpec& node);
std::unique_ptr<Op> make_svm_regressor(const NodeSpec& node);

}  // namespace headrace
