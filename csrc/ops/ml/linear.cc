// LinearClassifier and LinearRegressor.
#include "ops/ml/ml_ops.h"
#include "ops/ml/row_op.h"
#include "ops/ml/scores.h"

namespace headrace {
namespace {

// Scores of a row: coefficients [scores, columns] times the row, plus intercepts; summed in double,
// column by column.
class LinearScores {
 public:
  LinearScores(const NodeSpec& node, int64_t scores)
      : coefficients_(node.floats("coefficients")), intercepts_(node.floats("intercepts")) {
    if (intercepts_.empty()) intercepts_.resize(static_cast<size_t>(scores), 0.0);
    auto n = static_cast<int64_t>(coefficients_.size());
    if (static_cast<int64_t>(intercepts_.size()) != scores || n == 0 || n % scores != 0) {
      node.invalid(str("got ", n, " coefficients and ", intercepts_.size(), " intercepts for ",
                       scores, " scores, expected a multiple of the scores, and one each"));
    }
    columns_ = n / scores;
  }

  int64_t scores() const { return static_cast<int64_t>(intercepts_.size()); }
  int64_t columns() const { return columns_; }

  template <class T>
  void compute(const void* x, int64_t row, double* out) const {
    const double* coefficient = coefficients_.data();
    for (int64_t k = 0; k < scores(); ++k) {
      double sum = 0;
      for (int64_t c = 0; c < columns_; ++c) {
        sum += *coefficient++ * static_cast<double>(element<T>(x, row * columns_ + c));
      }
      out[k] = sum + intercepts_[static_cast<size_t>(k)];
    }
  }

 private:
  std::vector<double> coefficients_;
  std::vector<double> intercepts_;
  int64_t columns_ = 0;
};

// Keeps a row's scores on the stack.
constexpr int64_t kMaxScores = 1024;

class LinearModel : public TableOp {
 protected:
  LinearModel(LinearScores scores, PostTransform transform)
      : scores_(std::move(scores)), transform_(transform) {}

  int64_t min_rows() const final {
    return min_rows_of(scores_.columns() * scores_.scores(), kMinElementsPerThread);
  }

  LinearScores scores_;
  PostTransform transform_;
};

class LinearRegressor final : public LinearModel {
 public:
  LinearRegressor(LinearScores scores, PostTransform transform)
      : LinearModel(std::move(scores), transform) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_table(inputs[0].shape, scores_.columns());
    outputs[0] = {rows_of(inputs[0].shape), scores_.scores()};
  }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    int64_t targets = scores_.scores();
    double scores[kMaxScores];
    with_number_type(x.dtype, [&]<class T>(T) {
      for (int64_t row = begin; row < end; ++row) {
        scores_.compute<T>(x.data, row, scores);
        transform_scores(transform_, {scores, static_cast<size_t>(targets)});
        float* y = outputs[0].as<float>() + row * targets;
        for (int64_t k = 0; k < targets; ++k) y[k] = static_cast<float>(scores[k]);
      }
    });
  }
};

// With one row of coefficients and two labels, the one score is the second class's, and the first
// class gets its negative.
class LinearClassifier final : public LinearModel {
 public:
  LinearClassifier(LinearScores scores, PostTransform transform, ClassLabels labels)
      : LinearModel(std::move(scores), transform), labels_(std::move(labels)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_table(inputs[0].shape, scores_.columns());
    int64_t rows = rows_of(inputs[0].shape);
    outputs[0] = {rows};
    if (outputs.size() > 1) outputs[1] = {rows, labels_.size()};
  }

 protected:
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    int64_t classes = labels_.size();
    double scores[kMaxScores];
    with_number_type(x.dtype, [&]<class T>(T) {
      for (int64_t row = begin; row < end; ++row) {
        scores_.compute<T>(x.data, row, scores);
        if (scores_.scores() == 1) {
          scores[1] = scores[0];
          scores[0] = -scores[1];
        }
        int64_t best = 0;
        for (int64_t k = 1; k < classes; ++k) {
          if (scores[k] > scores[best]) best = k;
        }
        if (outputs[0].data != nullptr) labels_.write(best, outputs[0].as<std::byte>(), row);
        if (outputs.size() < 2 || outputs[1].data == nullptr) continue;
        transform_scores(transform_, {scores, static_cast<size_t>(classes)});
        float* y = outputs[1].as<float>() + row * classes;
        for (int64_t k = 0; k < classes; ++k) y[k] = static_cast<float>(scores[k]);
      }
    });
  }

 private:
  ClassLabels labels_;
};

int64_t checked_scores(const NodeSpec& node, int64_t scores) {
  if (scores < 1 || scores > kMaxScores) {
    node.unsupported(str("got ", scores, " scores, expected 1 .. ", kMaxScores));
  }
  return scores;
}

}  // namespace

std::unique_ptr<Op> make_linear_regressor(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 0, DType::kF32);
  LinearScores scores(node, checked_scores(node, node.int_or("targets", 1)));
  return std::make_unique<LinearRegressor>(std::move(scores), post_transform_of(node));
}

std::unique_ptr<Op> make_linear_classifier(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 1, DType::kF32);
  ClassLabels labels(node, "classlabels_ints", "classlabels_strings");
  PostTransform transform = post_transform_of(node);
  auto intercepts = static_cast<int64_t>(node.floats("intercepts").size());
  int64_t scores = checked_scores(node, intercepts > 0 ? intercepts : labels.size());
  bool one_score = scores == 1 && labels.size() == 2;
  if (labels.size() < 2 || (!one_score && scores != labels.size()) ||
      (one_score && transform == PostTransform::kProbit)) {
    node.unsupported(str("got ", scores, " scores for ", labels.size(),
                         " class labels, expected as many, or one score for two labels and a "
                         "post_transform other than PROBIT"));
  }
  return std::make_unique<LinearClassifier>(LinearScores(node, scores), transform,
                                            std::move(labels));
}

}  // namespace headrace
