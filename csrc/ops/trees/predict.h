// Scores of rows under a Forest.
#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "ops/op.h"
#include "ops/trees/encode.h"
#include "ops/trees/forest.h"

namespace headrace {

enum class Aggregate { kSum, kAverage, kMin, kMax };

// Called with the scores of rows [row, row + rows): scores[target * kBlockRows + i] of row + i.
// `row_scores` has room for the scores of one row, and for two.
using EmitScores =
    FunctionRef<void(int64_t row, int64_t rows, const double* scores, double* row_scores)>;

class ForestPredictor {
 public:
  ForestPredictor(Forest forest, Aggregate aggregate, Isa isa);

  const Forest& forest() const { return forest_; }
  // Sums in double for every row alone, the trees of each of the Forest's spans in their order and
  // then the spans, so a row's bits depend on nothing else. `emit` is called from any of the Plan's
  // threads, once per row.
  void predict(const OpRun& run, const FeatureTable& table, EmitScores emit) const;

 private:
  template <class Code>
  struct Workspace;
  template <class T, class Code>
  void predict_typed(const OpRun& run, const FeatureTable& table, EmitScores emit) const;
  template <class T, class Code>
  void predict_rows(const FeatureTable& table, int64_t row, int64_t rows, Workspace<Code>& work,
                    EmitScores emit) const;
  template <class T, class Code>
  void predict_block(const FeatureTable& table, int64_t row, int64_t rows, Workspace<Code>& work,
                     EmitScores emit) const;
  template <class T, class Code>
  void predict_spans(const OpRun& run, const FeatureTable& table, int64_t row, int64_t rows,
                     std::byte* memory, std::byte* partials, EmitScores emit) const;
  int64_t block_rows_for(int64_t rows, int threads) const;
  template <class Code>
  void add_lockstep(const TreeGroup& group, Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void add_walked(const Tree& tree, Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void score_span(const TreeSpan& span, Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void score_row(Workspace<Code>& work, int64_t slot) const;
  void add_leaf(const Tree& tree, size_t place, double* row_scores) const;
  bool sums() const { return aggregate_ == Aggregate::kSum || aggregate_ == Aggregate::kAverage; }
  double neutral() const;
  double folded(double a, double b) const {
    if (aggregate_ == Aggregate::kMin) return std::min(a, b);
    if (aggregate_ == Aggregate::kMax) return std::max(a, b);
    return a + b;
  }
  void start(double* scores) const;
  void fold(const double* partial, int64_t rows, double* scores) const;
  void finish(double* scores) const;

  Forest forest_;
  Aggregate aggregate_;
  const TreeKernels& kernels_;
};

}  // namespace headrace
