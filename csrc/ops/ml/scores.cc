#include "ops/ml/scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace headrace {
namespace {

// Winitzki's approximation of the inverse error function, the one that ONNX's reference
// implementation and ONNX Runtime use for PROBIT.
double inverse_erf(double x) {
  double sign = x < 0 ? -1.0 : 1.0;
  double y = (1.0 - x) * (1.0 + x);
  if (y == 0) return 0;
  double log = std::log(y);
  double v = 2.0 / (std::numbers::pi * 0.147) + 0.5 * log;
  double v2 = 1.0 / 0.147 * log;
  return sign * std::sqrt(-v + std::sqrt(v * v - v2));
}

void softmax(std::span<double> scores) {
  double max = *std::ranges::max_element(scores);
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - max);
  for (double& score : scores) score /= sum;
}

// Softmax in which a score of zero keeps (almost) no weight.
void softmax_zero(std::span<double> scores) {
  double max = *std::ranges::max_element(scores);
  double zero_scale = std::exp(-max);
  double sum = 0;
  for (double& score : scores) {
    score = std::abs(score) > 1e-7 ? std::exp(score - max) : score * zero_scale;
    sum += score;
  }
  for (double& score : scores) score = sum == 0 ? 0.5 : score / sum;
}

}  // namespace

PostTransform post_transform_of(const NodeSpec& node) {
  std::string name = node.string_or("post_transform", "NONE");
  if (name == "NONE") return PostTransform::kNone;
  if (name == "SOFTMAX") return PostTransform::kSoftmax;
  if (name == "LOGISTIC") return PostTransform::kLogistic;
  if (name == "SOFTMAX_ZERO") return PostTransform::kSoftmaxZero;
  if (name == "PROBIT") return PostTransform::kProbit;
  node.invalid(str("got post_transform '", name,
                   "', expected NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT"));
}

double logistic(double score) {
  double v = 1.0 / (1.0 + std::exp(-std::abs(score)));
  return score < 0 ? 1.0 - v : v;
}

void transform_scores(PostTransform transform, std::span<double> scores) {
  if (scores.empty()) return;
  switch (transform) {
    case PostTransform::kNone:
      return;
    case PostTransform::kSoftmax:
      return softmax(scores);
    case PostTransform::kLogistic:
      for (double& score : scores) score = logistic(score);
      return;
    case PostTransform::kSoftmaxZero:
      return softmax_zero(scores);
    case PostTransform::kProbit:
      for (double& score : scores) score = std::numbers::sqrt2 * inverse_erf(2 * score - 1);
      return;
  }
}

ClassLabels::ClassLabels(const NodeSpec& node, std::string_view ints, std::string_view strings)
    : ints_(node.ints(ints)), strings_(node.strings(strings)) {
  if (ints_.empty() == strings_.empty()) {
    node.invalid(str("got ", ints_.size(), " ", ints, " and ", strings_.size(), " ", strings,
                     ", expected exactly one of the two"));
  }
  DType expected = strings_.empty() ? DType::kI64 : DType::kString;
  DType got = node.output_dtypes.empty() ? DType::kNone : node.output_dtypes[0];
  if (got != DType::kNone && got != expected) {
    node.invalid(str("got a label output of ", name_of(got), ", expected ", name_of(expected)));
  }
}

void ClassLabels::write(int64_t index, std::byte* labels, int64_t row) const {
  auto i = static_cast<size_t>(index);
  if (strings_.empty()) {
    std::memcpy(labels + row * size_of(DType::kI64), &ints_[i], sizeof(int64_t));
  } else {
    StringRef label{strings_[i].data(), static_cast<int64_t>(strings_[i].size())};
    std::memcpy(labels + row * size_of(DType::kString), &label, sizeof(label));
  }
}

}  // namespace headrace
