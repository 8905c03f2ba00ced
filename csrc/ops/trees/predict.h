// Scores of rows under a Forest.
#pragma once

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
  // Sums trees in their order in double for every row alone, so a row's bits depend on nothing
  // else. `emit` is called from any of the Plan's threads, once per row.
  void predict(const OpRun& run, const FeatureTable& table, EmitScores emit) const;

 private:
  template <class Code>
  struct Workspace;
  template <class T, class Code>
  void predict_typed(const OpRun& run, const FeatureTable& table, EmitScores emit) const;
  int64_t block_rows_for(int64_t rows, int threads) const;
  template <class Code>
  void add_lockstep(const TreeGroup& group, Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void add_walked(const Tree& tree, Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void score_block(Workspace<Code>& work, int64_t rows) const;
  template <class Code>
  void score_row(Workspace<Code>& work, int64_t slot) const;
  void add_leaf(const Tree& tree, size_t place, double* row_scores) const;
  bool sums() const { return aggregate_ == Aggregate::kSum || aggregate_ == Aggregate::kAverage; }
  void start(double* scores) const;
  void finish(double* scores) const;

  Forest forest_;
  Aggregate aggregate_;
  const TreeKernels& kernels_;
};

}  // namespace headrace
