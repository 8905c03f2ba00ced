// SVMRegressor and SVMClassifier, as libsvm evaluates them.
#include <algorithm>
#include <cmath>

#include "ops/ml/ml_ops.h"
#include "ops/ml/row_op.h"
#include "ops/ml/scores.h"

namespace headrace {
namespace {

enum class Kernel { kLinear, kPoly, kRbf, kSigmoid };

// Support vectors, and how alike a row is to each.
class SupportVectors {
 public:
  SupportVectors(const NodeSpec& node, int64_t count)
      : values_(node.floats("support_vectors")), count_(count) {
    auto n = static_cast<int64_t>(values_.size());
    if (count < 1 || n == 0 || n % count != 0) {
      node.invalid(str("got ", n, " values in support_vectors for ", count,
                       " vectors, expected a multiple of the vectors"));
    }
    columns_ = n / count;
    std::string kernel = node.string_or("kernel_type", "LINEAR");
    if (kernel == "POLY") {
      kernel_ = Kernel::kPoly;
    } else if (kernel == "RBF") {
      kernel_ = Kernel::kRbf;
    } else if (kernel == "SIGMOID") {
      kernel_ = Kernel::kSigmoid;
    } else if (kernel != "LINEAR") {
      node.invalid(str("got kernel_type '", kernel, "', expected LINEAR, POLY, RBF or SIGMOID"));
    }
    std::vector<double> parameters = node.floats("kernel_params");
    if (parameters.size() == 3) {
      gamma_ = parameters[0];
      coef0_ = parameters[1];
      degree_ = parameters[2];
    } else if (!parameters.empty() || kernel_ != Kernel::kLinear) {
      node.invalid(str("got ", parameters.size(), " kernel_params, expected gamma, coef0, degree"));
    }
  }

  int64_t count() const { return count_; }
  int64_t columns() const { return columns_; }

  template <class T>
  double likeness(int64_t vector, const void* x, int64_t row) const {
    const double* v = values_.data() + vector * columns_;
    int64_t first = row * columns_;
    double sum = 0;
    for (int64_t c = 0; c < columns_; ++c) {
      double value = static_cast<double>(element<T>(x, first + c));
      double difference = value - v[c];
      sum += kernel_ == Kernel::kRbf ? difference * difference : value * v[c];
    }
    switch (kernel_) {
      case Kernel::kLinear:
        return sum;
      case Kernel::kPoly:
        return std::pow(gamma_ * sum + coef0_, degree_);
      case Kernel::kRbf:
        return std::exp(-gamma_ * sum);
      case Kernel::kSigmoid:
        return std::tanh(gamma_ * sum + coef0_);
    }
    return 0;
  }

 private:
  std::vector<double> values_;
  int64_t count_;
  int64_t columns_ = 0;
  Kernel kernel_ = Kernel::kLinear;
  double gamma_ = 0;
  double coef0_ = 0;
  double degree_ = 0;
};

class SvmRegressor final : public TableOp {
 public:
  SvmRegressor(SupportVectors vectors, std::vector<double> coefficients, double rho, bool one_class)
      : vectors_(std::move(vectors)),
        coefficients_(std::move(coefficients)),
        rho_(rho),
        one_class_(one_class) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_table(inputs[0].shape, vectors_.columns());
    outputs[0] = {rows_of(inputs[0].shape), 1};
  }

 protected:
  int64_t min_rows() const override {
    return min_rows_of(vectors_.count() * vectors_.columns(), kMinElementsPerThread);
  }
  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    with_number_type(x.dtype, [&]<class T>(T) {
      for (int64_t row = begin; row < end; ++row) {
        double sum = 0;
        for (int64_t v = 0; v < vectors_.count(); ++v) {
          sum += coefficients_[static_cast<size_t>(v)] * vectors_.likeness<T>(v, x.data, row);
        }
        sum += rho_;
        if (one_class_) sum = sum > 0 ? 1 : -1;
        outputs[0].as<float>()[row] = static_cast<float>(sum);
      }
    });
  }

 private:
  SupportVectors vectors_;
  std::vector<double> coefficients_;
  double rho_;
  bool one_class_;
};

// Keeps a row's matrices of classes x classes on the stack.
constexpr int64_t kMaxClasses = 48;
constexpr int64_t kMaxPairs = kMaxClasses * (kMaxClasses - 1) / 2;

// Class probabilities from those of all pairs, r[i][j] being that of i against j. The second method
// of Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise coupling",
// JMLR 5 (2004), with libsvm's stopping rule.
void couple(int64_t classes, const double (*r)[kMaxClasses], double* p) {
  double q[kMaxClasses][kMaxClasses];
  double qp[kMaxClasses];
  for (int64_t t = 0; t < classes; ++t) {
    p[t] = 1.0 / static_cast<double>(classes);
    q[t][t] = 0;
    for (int64_t j = 0; j < classes; ++j) {
      if (j == t) continue;
      q[t][t] += r[j][t] * r[j][t];
      q[t][j] = -r[j][t] * r[t][j];
    }
  }
  int64_t rounds = std::max<int64_t>(100, classes);
  double enough = 0.005 / static_cast<double>(classes);
  for (int64_t round = 0; round < rounds; ++round) {
    double pqp = 0;
    for (int64_t t = 0; t < classes; ++t) {
      qp[t] = 0;
      for (int64_t j = 0; j < classes; ++j) qp[t] += q[t][j] * p[j];
      pqp += p[t] * qp[t];
    }
    double error = 0;
    for (int64_t t = 0; t < classes; ++t) error = std::max(error, std::abs(qp[t] - pqp));
    if (error < enough) return;
    for (int64_t t = 0; t < classes; ++t) {
      double diff = (pqp - qp[t]) / q[t][t];
      p[t] += diff;
      pqp = (pqp + diff * (diff * q[t][t] + 2 * qp[t])) / (1 + diff) / (1 + diff);
      for (int64_t j = 0; j < classes; ++j) {
        qp[j] = (qp[j] + diff * q[t][j]) / (1 + diff);
        p[j] /= 1 + diff;
      }
    }
  }
}

// One against one: each pair of classes has a score, positive if the first of the two wins.
class SvmClassifier final : public TableOp {
 public:
  SvmClassifier(const NodeSpec& node, SupportVectors vectors, ClassLabels labels)
      : vectors_(std::move(vectors)),
        labels_(std::move(labels)),
        per_class_(node.ints("vectors_per_class")),
        coefficients_(node.floats("coefficients")),
        rho_(node.floats("rho")),
        prob_a_(node.floats("prob_a")),
        prob_b_(node.floats("prob_b")),
        transform_(post_transform_of(node)) {
    int64_t pairs = this->pairs();
    auto has = [](const std::vector<double>& values, int64_t n) {
      return static_cast<int64_t>(values.size()) == n;
    };
    if (!has(coefficients_, (classes() - 1) * vectors_.count()) || !has(rho_, pairs)) {
      node.invalid(str("got ", coefficients_.size(), " coefficients and ", rho_.size(),
                       " rho, expected ", (classes() - 1) * vectors_.count(), " and ", pairs));
    }
    if (prob_a_.size() != prob_b_.size() || (has_probabilities() && !has(prob_a_, pairs))) {
      node.invalid(str("got ", prob_a_.size(), " prob_a and ", prob_b_.size(), " prob_b, expected ",
                       pairs, " each, or none"));
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_table(inputs[0].shape, vectors_.columns());
    int64_t rows = rows_of(inputs[0].shape);
    outputs[0] = {rows};
    if (outputs.size() > 1) outputs[1] = {rows, scores()};
  }

 protected:
  int64_t min_rows() const override {
    return min_rows_of(vectors_.count() * vectors_.columns(), kMinElementsPerThread);
  }

  void run_rows(const ConstTensorView& x, OutputViews outputs, int64_t begin,
                int64_t end) const override {
    double pair_scores[kMaxPairs];
    double out[std::max(kMaxPairs, kMaxClasses)];
    for (int64_t row = begin; row < end; ++row) {
      with_number_type(x.dtype, [&]<class T>(T) { score_pairs<T>(x.data, row, pair_scores); });
      if (outputs[0].data != nullptr) {
        labels_.write(winner(pair_scores), outputs[0].as<std::byte>(), row);
      }
      if (outputs.size() < 2 || outputs[1].data == nullptr) continue;
      finish(pair_scores, out);
      float* y = outputs[1].as<float>() + row * scores();
      for (int64_t k = 0; k < scores(); ++k) y[k] = static_cast<float>(out[k]);
    }
  }

 private:
  int64_t classes() const { return labels_.size(); }
  int64_t pairs() const { return classes() * (classes() - 1) / 2; }
  bool has_probabilities() const { return !prob_a_.empty(); }
  // Two classes without probabilities get the one score and its negative.
  int64_t scores() const { return has_probabilities() || classes() == 2 ? classes() : pairs(); }

  // Number of the pair of classes first < second.
  int64_t pair(int64_t first, int64_t second) const {
    return first * (2 * classes() - first - 1) / 2 + second - first - 1;
  }

  template <class T>
  void score_pairs(const void* x, int64_t row, double* pair_scores) const {
    std::fill(pair_scores, pair_scores + pairs(), 0.0);
    int64_t vector = 0;
    for (int64_t own = 0; own < classes(); ++own) {
      int64_t end = vector + per_class_[static_cast<size_t>(own)];
      for (; vector < end; ++vector) {
        double likeness = vectors_.likeness<T>(vector, x, row);
        for (int64_t other = 0; other < classes(); ++other) {
          if (other == own) continue;
          // A vector has a coefficient against every other class.
          int64_t at = other > own ? other - 1 : other;
          double coefficient = coefficients_[static_cast<size_t>(at * vectors_.count() + vector)];
          pair_scores[pair(std::min(own, other), std::max(own, other))] += coefficient * likeness;
        }
      }
    }
    for (int64_t p = 0; p < pairs(); ++p) pair_scores[p] += rho_[static_cast<size_t>(p)];
  }

  int64_t winner(const double* pair_scores) const {
    int64_t votes[kMaxClasses] = {};
    for (int64_t i = 0; i < classes(); ++i) {
      for (int64_t j = i + 1; j < classes(); ++j) ++votes[*pair_scores++ > 0 ? i : j];
    }
    return std::max_element(votes, votes + classes()) - votes;
  }

  void finish(const double* pair_scores, double* out) const {
    if (has_probabilities()) {
      double r[kMaxClasses][kMaxClasses];
      for (int64_t i = 0; i < classes(); ++i) {
        for (int64_t j = i + 1; j < classes(); ++j) {
          int64_t p = pair(i, j);
          auto at = static_cast<size_t>(p);
          double probability = 1 - logistic(pair_scores[p] * prob_a_[at] + prob_b_[at]);
          r[i][j] = std::clamp(probability, 1e-7, 1 - 1e-7);
          r[j][i] = 1 - r[i][j];
        }
      }
      couple(classes(), r, out);
    } else if (classes() == 2) {
      out[0] = -pair_scores[0];
      out[1] = pair_scores[0];
    } else {
      std::copy(pair_scores, pair_scores + pairs(), out);
    }
    transform_scores(transform_, {out, static_cast<size_t>(scores())});
  }

  SupportVectors vectors_;
  ClassLabels labels_;
  std::vector<int64_t> per_class_;
  std::vector<double> coefficients_;
  std::vector<double> rho_;
  std::vector<double> prob_a_;
  std::vector<double> prob_b_;
  PostTransform transform_;
};

}  // namespace

std::unique_ptr<Op> make_svm_regressor(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 0, DType::kF32);
  std::vector<double> coefficients = node.floats("coefficients");
  std::vector<double> rho = node.floats("rho");
  int64_t supports = node.int_or("n_supports", 0);
  if (supports < 1 || post_transform_of(node) != PostTransform::kNone) {
    node.unsupported("expected support vectors (n_supports > 0) and post_transform NONE");
  }
  if (static_cast<int64_t>(coefficients.size()) != supports || rho.size() != 1) {
    node.invalid(str("got ", coefficients.size(), " coefficients and ", rho.size(),
                     " rho, expected ", supports, " and 1"));
  }
  return std::make_unique<SvmRegressor>(SupportVectors(node, supports), std::move(coefficients),
                                        rho[0], node.int_or("one_class", 0) != 0);
}

std::unique_ptr<Op> make_svm_classifier(const NodeSpec& node) {
  checked_number_input(node);
  check_output(node, 1, DType::kF32);
  ClassLabels labels(node, "classlabels_ints", "classlabels_strings");
  std::vector<int64_t> per_class = node.ints("vectors_per_class");
  if (per_class.empty() || labels.size() < 2 || labels.size() > kMaxClasses) {
    node.unsupported(str("got ", per_class.size(), " vectors_per_class and ", labels.size(),
                         " labels, expected support vectors for 2 .. ", kMaxClasses, " classes"));
  }
  int64_t vectors = 0;
  for (int64_t count : per_class) vectors += count;
  if (static_cast<int64_t>(per_class.size()) != labels.size() || std::ranges::min(per_class) < 0) {
    node.invalid(str("got ", per_class.size(),
                     " vectors_per_class, expected one count for each of ", labels.size(),
                     " labels"));
  }
  // Two classes, no probabilities: what post_transform does to the one score is left open by ONNX.
  bool one_score = labels.size() == 2 && node.floats("prob_a").empty();
  PostTransform transform = post_transform_of(node);
  if (one_score && transform != PostTransform::kNone && transform != PostTransform::kLogistic) {
    node.unsupported("expected post_transform NONE or LOGISTIC for two classes");
  }
  return std::make_unique<SvmClassifier>(node, SupportVectors(node, vectors), std::move(labels));
}

}  // namespace headrace
