// A tree ensemble as the Model states it, the same for the three ONNX ops that carry one.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/op.h"

namespace headrace {

// The question a branch asks of one feature. A missing value (NaN) goes where `nan_true` says;
// kNeq counts NaN as different from everything.
enum class BranchTest { kLeq, kLt, kGte, kGt, kEq, kNeq, kMember };

// Index of a branch if >= 0, else ~index of a leaf.
using NodeRef = int32_t;

struct Branch {
  BranchTest test = BranchTest::kLeq;
  bool nan_true = false;
  int32_t feature = 0;
  double value = 0;  // threshold, or the value of kEq and kNeq
  int32_t set = -1;  // index into Ensemble::sets for kMember
  NodeRef if_true = 0;
  NodeRef if_false = 0;
};

struct LeafWeight {
  int32_t target;
  double value;
};

// Weights of leaf i: weights[leaf_begin[i]] up to leaf_begin[i + 1].
struct Ensemble {
  std::vector<Branch> branches;
  std::vector<std::vector<double>> sets;
  std::vector<LeafWeight> weights;
  std::vector<int32_t> leaf_begin;
  std::vector<NodeRef> roots;  // in the order in which trees are summed
  int32_t targets = 0;

  int32_t leaves() const { return static_cast<int32_t>(leaf_begin.size()) - 1; }
};

// Reads TreeEnsembleRegressor (`prefix` "target") and TreeEnsembleClassifier ("class").
// Throws Error(kInvalidModel) for arrays that do not fit together.
Ensemble parse_ensemble(const NodeSpec& node, std::string_view prefix, int32_t targets);

// Reads TreeEnsemble (ai.onnx.ml opset 5).
Ensemble parse_ensemble_v5(const NodeSpec& node);

}  // namespace headrace
