// ai.onnx.ml TreeEnsembleRegressor, TreeEnsembleClassifier and TreeEnsemble.
#include <algorithm>
#include <cstring>
#include <set>

#include "ops/ml/scores.h"
#include "ops/rooms.h"
#include "ops/trees/predict.h"

namespace headrace {
namespace {

// Bounds the memory for the scores of a block of rows.
constexpr int64_t kMaxTargets = 1 << 20;

DType checked_input(const NodeSpec& node) {
  DType dtype = node.inputs() > 0 ? node.input_dtypes[0] : DType::kNone;
  if (dtype != DType::kF32 && dtype != DType::kF64 && dtype != DType::kI32 &&
      dtype != DType::kI64) {
    node.unsupported(
        str("got an input of ", name_of(dtype), ", expected float32, float64, int32 or int64"));
  }
  return dtype;
}

ForestPredictor make_predictor(const NodeSpec& node, const Ensemble& ensemble,
                               Aggregate aggregate) {
  bool wide = checked_input(node) != DType::kF32;
  return {compile_forest(node, ensemble, wide), aggregate, node.isa};
}

// Rows of a feature table: [rows, features], or [features] for one row.
int64_t rows_of(const Shape& shape) {
  return shape.rank() == 1 ? 1 : shape[0];
}

// Base of the ops: from tables of features to scores.
class TreeOp : public Op {
 public:
  explicit TreeOp(ForestPredictor predictor) : predictor_(std::move(predictor)) {}

  void run(const OpRun& run) const final {
    const Segments& input = run.input(0);
    bool one_table = !input.shared;
    for (size_t r = 1; r < run.requests(); ++r) {
      one_table = one_table && features_of(input.shape(r)) == features_of(input.shape(0));
    }
    int64_t row = 0;
    size_t tables = one_table ? 1 : run.requests();
    for (size_t r = 0; r < tables; ++r) {
      FeatureTable table{
          .dtype = input.dtype,
          .data = input.data + (input.shared ? 0 : input.offsets[r]) * size_of(input.dtype),
          .rows = 0,
          .features = features_of(input.shape(r))};
      for (size_t q = r; q < (one_table ? run.requests() : r + 1); ++q) {
        table.rows += rows_of(input.shape(q));
      }
      predictor_.predict(run, table,
                         [&](int64_t at, int64_t rows, const double* scores, double* row_scores) {
                           emit(run, row + at, rows, scores, row_scores);
                         });
      row += table.rows;
    }
  }

  int64_t packed_bytes() const final { return predictor_.forest().bytes(); }

 protected:
  // Writes outputs of rows [row, row + rows) of the Batch; see EmitScores.
  virtual void emit(const OpRun& run, int64_t row, int64_t rows, const double* scores,
                    double* row_scores) const = 0;

  int64_t checked_rows(const Shape& shape) const {
    int32_t expected = predictor_.forest().feature_end;
    if (shape.rank() < 1 || shape.rank() > 2 || features_of(shape) < expected) {
      fail(ErrorKind::kShapeMismatch, "got features of shape ", to_string(shape),
           ", expected [rows, features] with at least ", expected, " features");
    }
    return rows_of(shape);
  }
  const ForestPredictor& predictor() const { return predictor_; }

 private:
  static int64_t features_of(const Shape& shape) { return shape[shape.rank() - 1]; }

  ForestPredictor predictor_;
};

// The attribute base_values: added to the sums, one per score, or absent.
class BaseValues {
 public:
  BaseValues() = default;
  BaseValues(const NodeSpec& node, int64_t scores) : values_(node.floats("base_values_as_tensor")) {
    if (values_.empty()) values_ = node.floats("base_values");
    auto got = static_cast<int64_t>(values_.size());
    // One base for the one score of a binary classifier may come with two places for it.
    if (got != 0 && got != scores && !(got == 2 && scores == 1)) {
      node.invalid(str("got ", got, " base_values, expected ", scores));
    }
  }
  double operator[](int64_t target) const {
    return values_.empty() ? 0.0 : values_[static_cast<size_t>(target)];
  }

 private:
  std::vector<double> values_;
};

// TreeEnsembleRegressor and TreeEnsemble.
class TreeRegressor final : public TreeOp {
 public:
  TreeRegressor(ForestPredictor predictor, BaseValues base, PostTransform transform)
      : TreeOp(std::move(predictor)), base_(std::move(base)), transform_(transform) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = {checked_rows(inputs[0].shape), predictor().forest().targets};
  }

 protected:
  void emit(const OpRun& run, int64_t row, int64_t rows, const double* scores,
            double* row_scores) const override {
    if (run.output(0).dtype == DType::kF64) {
      write<double>(run, row, rows, scores, row_scores);
    } else {
      write<float>(run, row, rows, scores, row_scores);
    }
  }

 private:
  template <class T>
  void write(const OpRun& run, int64_t row, int64_t rows, const double* scores,
             double* row_scores) const {
    int64_t targets = predictor().forest().targets;
    T* out = reinterpret_cast<T*>(run.output(0).data) + row * targets;
    for (int64_t i = 0; i < rows; ++i, out += targets) {
      for (int64_t k = 0; k < targets; ++k) {
        row_scores[k] = scores[k * kBlockRows + i] + base_[k];
      }
      transform_scores(transform_, {row_scores, static_cast<size_t>(targets)});
      for (int64_t k = 0; k < targets; ++k) out[k] = static_cast<T>(row_scores[k]);
    }
  }

  BaseValues base_;
  PostTransform transform_;
};

// Classifiers come in two forms: a score per class, or, for two classes, only the score of the
// second one. ONNX leaves the second form to convention, which is: LOGISTIC gives (1 - p, p) and
// the softmaxes work on (-s, s). Without a transform s is a probability if no weight is negative,
// giving (1 - s, s), and else a margin, giving (-s, s).
class TreeClassifier final : public TreeOp {
 public:
  TreeClassifier(ForestPredictor predictor, BaseValues base, PostTransform transform,
                 ClassLabels labels, bool probability)
      : TreeOp(std::move(predictor)),
        base_(std::move(base)),
        transform_(transform),
        labels_(std::move(labels)),
        one_score_(this->predictor().forest().targets == 1),
        probability_(probability) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    int64_t rows = checked_rows(inputs[0].shape);
    outputs[0] = {rows};
    if (outputs.size() > 1) outputs[1] = {rows, labels_.size()};
  }

 protected:
  void emit(const OpRun& run, int64_t row, int64_t rows, const double* scores,
            double* row_scores) const override {
    int64_t classes = labels_.size();
    float* out = run.has_output(1) ? reinterpret_cast<float*>(run.output(1).data) : nullptr;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t label = one_score_ ? score_two(scores[i] + base_[0], row_scores)
                                 : score_all(scores + i, row_scores);
      if (run.has_output(0)) labels_.write(label, run.output(0).data, row + i);
      if (out == nullptr) continue;
      for (int64_t k = 0; k < classes; ++k) {
        out[(row + i) * classes + k] = static_cast<float>(row_scores[k]);
      }
    }
  }

 private:
  // From the score of the second class to both classes' scores; returns the label's index.
  int64_t score_two(double score, double* out) const {
    if (transform_ == PostTransform::kLogistic) {
      out[0] = logistic(-score);
      out[1] = logistic(score);
      return score > 0 ? 1 : 0;
    }
    bool probability = probability_ && transform_ == PostTransform::kNone;
    out[0] = probability ? 1.0 - score : -score;
    out[1] = score;
    transform_scores(transform_, {out, 2});
    return score > (probability ? 0.5 : 0.0) ? 1 : 0;
  }

  int64_t score_all(const double* scores, double* out) const {
    int64_t best = 0;
    for (int64_t k = 0; k < labels_.size(); ++k) {
      out[k] = scores[k * kBlockRows] + base_[k];
      if (out[k] > out[best]) best = k;
    }
    transform_scores(transform_, {out, static_cast<size_t>(labels_.size())});
    return best;
  }

  BaseValues base_;
  PostTransform transform_;
  ClassLabels labels_;
  bool one_score_;
  bool probability_;
};

std::unique_ptr<Op> make_regressor(const NodeSpec& node) {
  int64_t targets = node.int_or("n_targets", 1);
  if (targets < 1 || targets > kMaxTargets) {
    node.unsupported(str("got n_targets ", targets, ", expected 1 .. ", kMaxTargets));
  }
  std::string name = node.string_or("aggregate_function", "SUM");
  Aggregate aggregate = Aggregate::kSum;
  if (name == "AVERAGE") {
    aggregate = Aggregate::kAverage;
  } else if (name == "MIN") {
    aggregate = Aggregate::kMin;
  } else if (name == "MAX") {
    aggregate = Aggregate::kMax;
  } else if (name != "SUM") {
    node.invalid(str("got aggregate_function '", name, "', expected SUM, AVERAGE, MIN or MAX"));
  }
  Ensemble ensemble = parse_ensemble(node, "target", static_cast<int32_t>(targets));
  return std::make_unique<TreeRegressor>(make_predictor(node, ensemble, aggregate),
                                         BaseValues(node, targets), post_transform_of(node));
}

std::unique_ptr<Op> make_tree_ensemble(const NodeSpec& node) {
  int64_t targets = node.int_or("n_targets", 1);
  if (targets < 1 || targets > kMaxTargets) {
    node.unsupported(str("got n_targets ", targets, ", expected 1 .. ", kMaxTargets));
  }
  constexpr Aggregate kAggregates[] = {Aggregate::kAverage, Aggregate::kSum, Aggregate::kMin,
                                       Aggregate::kMax};
  constexpr PostTransform kTransforms[] = {PostTransform::kNone, PostTransform::kSoftmax,
                                           PostTransform::kLogistic, PostTransform::kSoftmaxZero,
                                           PostTransform::kProbit};
  int64_t aggregate = node.int_or("aggregate_function", 1);
  int64_t transform = node.int_or("post_transform", 0);
  if (aggregate < 0 || aggregate > 3) {
    node.invalid(str("got aggregate_function ", aggregate, ", expected 0 .. 3"));
  }
  if (transform < 0 || transform > 4) {
    node.invalid(str("got post_transform ", transform, ", expected 0 .. 4"));
  }
  return std::make_unique<TreeRegressor>(
      make_predictor(node, parse_ensemble_v5(node), kAggregates[aggregate]), BaseValues(),
      kTransforms[transform]);
}

std::unique_ptr<Op> make_classifier(const NodeSpec& node) {
  ClassLabels labels(node, "classlabels_int64s", "classlabels_strings");
  if (labels.size() < 2 || labels.size() > kMaxTargets) {
    node.unsupported(str("got ", labels.size(), " class labels, expected 2 .. ", kMaxTargets));
  }
  PostTransform transform = post_transform_of(node);
  Ensemble ensemble = parse_ensemble(node, "class", static_cast<int32_t>(labels.size()));
  std::set<int32_t> classes;
  bool probability = true;
  for (const LeafWeight& weight : ensemble.weights) {
    classes.insert(weight.target);
    probability = probability && weight.value >= 0;
  }
  if (labels.size() == 2 && classes.size() == 1) {
    bool second = *classes.begin() == 1;
    if (transform == PostTransform::kProbit || (second && transform != PostTransform::kLogistic)) {
      node.unsupported(
          "two classes with weights for one of them only, under this post_transform: ONNX does "
          "not say what the other one's score is");
    }
    // The one score takes the place of target 0.
    for (LeafWeight& weight : ensemble.weights) weight.target = 0;
    ensemble.targets = 1;
  }
  int32_t scores = ensemble.targets;
  return std::make_unique<TreeClassifier>(make_predictor(node, ensemble, Aggregate::kSum),
                                          BaseValues(node, scores), transform, std::move(labels),
                                          probability);
}

}  // namespace

void register_trees_ops(OpRegistry& registry) {
  registry.add("ai.onnx.ml.TreeEnsembleRegressor", make_regressor);
  registry.add("ai.onnx.ml.TreeEnsembleClassifier", make_classifier);
  registry.add("ai.onnx.ml.TreeEnsemble", make_tree_ensemble);
}

}  // namespace headrace
