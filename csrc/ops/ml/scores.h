// What classical models do to raw scores before they become outputs: the contract of the ml room
// that the tree room shares.
#pragma once

#include <cstdint>
#include <span>

#include "ops/op.h"

namespace headrace {

enum class PostTransform { kNone, kSoftmax, kLogistic, kSoftmaxZero, kProbit };

// Reads the string attribute `post_transform` of the ai.onnx.ml ops.
PostTransform post_transform_of(const NodeSpec& node);

double logistic(double score);

// Transforms one row of scores in place.
void transform_scores(PostTransform transform, std::span<double> scores);

// The class labels of a classifier: `classlabels_ints` (or `classlabels_int64s`) or
// `classlabels_strings`.
class ClassLabels {
 public:
  // Reads the attributes; throws Error(kInvalidModel) unless exactly one of them is there, or
  // unless output 0 has its dtype.
  ClassLabels(const NodeSpec& node, std::string_view ints, std::string_view strings);

  int64_t size() const {
    return static_cast<int64_t>(strings_.empty() ? ints_.size() : strings_.size());
  }
  // Writes label `index` as element `row` of the label output; string elements point into this
  // object.
  void write(int64_t index, std::byte* labels, int64_t row) const;

 private:
  std::vector<int64_t> ints_;
  std::vector<std::string> strings_;
};

}  // namespace headrace
