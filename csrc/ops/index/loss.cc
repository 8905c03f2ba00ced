// NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: picking log-probabilities by label.
#include <cmath>
#include <cstring>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

enum class Reduction { kNone, kSum, kMean };

// Scores seen as [batch, classes, positions].
struct LossArgs {
  ConstTensorView scores;  // or log-probabilities
  ConstTensorView labels;
  ConstTensorView weights;  // absent: all 1
  TensorView loss;
  TensorView log_probabilities;  // no data: not wanted
  Reduction reduction;
  bool normalise;  // the scores are not log-probabilities yet
  bool ignores;
  int64_t ignored;
};

template <class T>
struct Loss {
  using C = ComputeType<T>;

  static void run(const LossArgs& args) {
    const Shape& shape = args.scores.shape;
    int64_t classes = shape[1];
    int64_t positions = shape.elements(2, shape.rank());
    const T* x = args.scores.as<T>();
    C total = 0;
    C weight_total = 0;
    int64_t n = 0;
    for (int64_t b = 0; b < shape[0]; ++b, x += classes * positions) {
      for (int64_t p = 0; p < positions; ++p, ++n) {
        C shift = args.normalise ? log_sum_exp(x + p, classes, positions) : C(0);
        if (args.log_probabilities.data != nullptr) {
          T* to = args.log_probabilities.as<T>() + b * classes * positions + p;
          for (int64_t c = 0; c < classes; ++c) {
            to[c * positions] = T(C(x[c * positions + p]) - shift);
          }
        }
        int64_t label = int_at(args.labels, n);
        bool skipped = args.ignores && label == args.ignored;
        C weight = skipped ? C(0) : C(1);
        if (!skipped && args.weights.present()) weight = C(args.weights.as<T>()[label]);
        C loss = skipped ? C(0) : (shift - C(x[label * positions + p])) * weight;
        if (args.reduction == Reduction::kNone) args.loss.as<T>()[n] = T(loss);
        total += loss;
        weight_total += weight;
      }
    }
    if (args.reduction == Reduction::kSum) *args.loss.as<T>() = T(total);
    if (args.reduction == Reduction::kMean) *args.loss.as<T>() = T(total / weight_total);
  }

  static C log_sum_exp(const T* x, int64_t classes, int64_t step) {
    C largest = C(x[0]);
    for (int64_t c = 1; c < classes; ++c) largest = std::max(largest, C(x[c * step]));
    C sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(C(x[c * step]) - largest);
    return largest + std::log(sum);
  }
};

class LossOp : public Op {
 public:
  LossOp(const NodeSpec& spec, bool normalise)
      : normalise_(normalise),
        ignores_(spec.has("ignore_index")),
        ignored_(spec.int_or("ignore_index", 0)) {
    require_index_dtype(spec, 1);
    std::string reduction = spec.string_or("reduction", "mean");
    if (reduction != "none" && reduction != "sum" && reduction != "mean") {
      spec.invalid(str("got reduction '", reduction, "'"));
    }
    reduction_ = reduction == "none"  ? Reduction::kNone
                 : reduction == "sum" ? Reduction::kSum
                                      : Reduction::kMean;
    if (spec.has_input(2) && spec.input_dtypes[2] != spec.input_dtypes[0])
      unsupported_dtype(spec, 2);
    bool known =
        visit_dtype(Floats{}, spec.input_dtypes[0], [&]<class T>() { loop_ = Loss<T>::run; });
    if (!known) unsupported_dtype(spec, 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& scores = inputs[0].shape;
    const Shape& labels = inputs[1].shape;
    bool fits = scores.rank() >= 2 && labels.rank() == scores.rank() - 1 && labels[0] == scores[0];
    for (int i = 1; fits && i < labels.rank(); ++i) fits = labels[i] == scores[i + 1];
    bool weighted = inputs.size() > 2 && inputs[2].present();
    if (!fits || (weighted && inputs[2].elements() != scores[1])) {
      fail(ErrorKind::kShapeMismatch, "got scores of shape ", to_string(scores), " and labels of ",
           to_string(labels), ", expected [N, C, ...] and [N, ...], and C weights if any");
    }
    for (int64_t i = 0; i < labels.elements(); ++i) {
      int64_t label = int_at(inputs[1], i);
      if ((label < 0 || label >= scores[1]) && !(ignores_ && label == ignored_)) {
        fail(ErrorKind::kExecution, "got label ", label, ", expected one below ", scores[1]);
      }
    }
    outputs[0] = reduction_ == Reduction::kNone ? labels : Shape{};
    if (outputs.size() > 1) outputs[1] = scores;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      LossArgs args{.scores = run.input(0).view(r),
                    .labels = run.input(1).view(r),
                    .weights = {},
                    .loss = run.output(0).view(r),
                    .log_probabilities = {},
                    .reduction = reduction_,
                    .normalise = normalise_,
                    .ignores = ignores_,
                    .ignored = ignored_};
      if (run.has_input(2)) args.weights = run.input(2).view(r);
      if (run.has_output(1)) args.log_probabilities = run.output(1).view(r);
      loop_(args);
    });
  }

 private:
  bool normalise_;
  bool ignores_;
  int64_t ignored_;
  Reduction reduction_;
  void (*loop_)(const LossArgs&) = nullptr;
};

template <bool kNormalise>
std::unique_ptr<Op> make_loss(const NodeSpec& spec) {
  if (spec.inputs() < 2) spec.invalid("got fewer than 2 inputs");
  return std::make_unique<LossOp>(spec, kNormalise);
}

}  // namespace

void register_loss(OpRegistry& registry) {
  registry.add("NegativeLogLikelihoodLoss", make_loss<false>);
  registry.add("SoftmaxCrossEntropyLoss", make_loss<true>);
}

}  // namespace headrace
