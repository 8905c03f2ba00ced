// A tree ensemble compiled for speed: feature values become small integer codes once per row, and
// trees compare codes.
//
// A branch "x <= t" only asks how x ranks among the thresholds of its feature. So the rank of x
// among them, its code, answers every branch of the ensemble on that feature with one integer
// comparison, exactly. Codes have 8 bits where no feature has more than 255 distinct thresholds
// (LightGBM's and XGBoost's histograms), else 16 or 32.
//
// Two ways to find a row's leaf in a tree, which always find the same one:
//  - lockstep: for 64 rows at once, evaluate every branch of the tree bottom-up; a branch's value
//    is the leaf that its subtree ends in. One compare and one blend per branch and vector of
//    codes, no gather and no jump, so it wins for trees of up to some hundred leaves.
//  - walk: follow the path from the root, several paths interleaved to hide latency. For larger
//    trees, and for the odd row.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu.h"
#include "ops/simd/dispatch.h"
#include "ops/trees/ensemble.h"

namespace headrace {

inline constexpr int kBlockRows = 64;
// Blocks of at most so many rows cost half as much in lockstep.
inline constexpr int kHalfBlockRows = 32;

// Sorted keys (thresholds, or categories) with an index above them: the last level holds the keys
// themselves, and every entry of a level above is the last of 16 entries below. Levels end in +inf,
// up to a multiple of 16 with at least one. So a search looks at 16 neighbours per level.
struct SortedKeys {
  static constexpr int kFanout = 16;
  static constexpr int kMaxLevels = 8;
  int32_t levels = 0;
  int32_t level[kMaxLevels] = {};  // where each begins among the Forest's keys, the top one first
};

// The codes of one feature. A rank column holds how many thresholds are below the value; a set
// column 0 for a member of the set and 1 otherwise; every branch asks "code <= its threshold".
// There are two rank columns where branches disagree on where NaN goes.
//
// All sets of a feature share its categories, their sorted union. A value's category number is 1
// more than its position there, 0 if it is none of them; the numbers after the last category's
// stand for no category (padding) and for NaN.
struct FeatureCodes {
  int32_t feature = 0;
  int32_t rank_nan_true = -1;   // column with code 0 for NaN, or -1
  int32_t rank_nan_false = -1;  // column with the highest code for NaN, or -1
  int32_t sets_begin = 0;       // set columns
  int32_t sets_end = 0;
  int32_t category_nan = 0;  // NaN's number
};

// Bit n of the words from `bits` on says whether category number n is a member.
struct SetColumn {
  int32_t column;
  int32_t bits;
};

// One branch of a tree in lockstep. Slots are vectors of leaf numbers: slot i >= 0 is the result of
// step i, and slot ~i holds number i in every lane. Columns and slots are given as byte offsets
// over kLockstepUnit, which a load can scale for free.
struct LockstepStep {
  uint16_t column;
  uint16_t threshold;
  int16_t if_true;
  int16_t if_false;
};
inline constexpr int kLockstepUnit = 8;

// A node of a tree to walk: the next node is child + (code > threshold). A leaf is its own child
// and has the highest threshold.
struct WalkNode {
  uint32_t child;
  uint16_t column;
  uint16_t threshold;
};
struct WideWalkNode {
  uint32_t child;
  uint32_t column;
  uint32_t threshold;
};

struct Tree {
  int32_t leaves;
  int32_t depth;        // longest path, in branches
  double mean_depth;    // over leaves
  int32_t target;       // of all the leaves' weights if `single`
  bool single;          // every leaf has one weight, and all have the same target
  int64_t nodes_begin;  // walk; the first is the root
  // Place of leaf 0: in weights if `single`, else in leaf_begin. The others follow.
  int64_t places_begin;
};

// Neighbours among the trees that are evaluated together. Steps of a group in lockstep take turns,
// tree 0, tree 1, ..., tree 0, ..., so that a step seldom waits for the one before it; shorter
// trees repeat their result at the end. The last `trees` slots hold the roots' results.
struct TreeGroup {
  int32_t first_tree;
  int32_t trees;
  int64_t steps_begin;
  int32_t steps;    // 0 if the trees are walked
  bool one_target;  // all trees are `single` and have the same target
};
inline constexpr int kGroupTrees = 4;

// Neighbours among the trees, whose weights are summed before they are added to those of other
// spans. Spans follow from the Forest alone, so that they may be computed by different threads.
struct TreeSpan {
  int32_t first_tree;
  int32_t trees;
  int32_t first_group;
  int32_t groups;
};

struct Forest {
  int code_bits = 8;  // 8, 16 or 32
  int32_t columns = 0;
  int32_t feature_end = 0;  // features a row must have
  int32_t targets = 0;
  std::vector<FeatureCodes> features;
  std::vector<SortedKeys> thresholds;  // per feature
  std::vector<SortedKeys> categories;  // per feature
  std::vector<SetColumn> sets;
  std::vector<uint64_t> set_bits;
  // In the type in which inputs are compared; the other one is empty.
  std::vector<float> keys_f32;
  std::vector<double> keys_f64;

  std::vector<Tree> trees;
  std::vector<TreeGroup> groups;  // all trees, in order
  std::vector<TreeSpan> spans;    // all groups, in order
  std::vector<LockstepStep> steps;
  std::vector<WalkNode> nodes;
  std::vector<WideWalkNode> wide_nodes;  // instead of nodes if codes have 32 bits
  std::vector<uint32_t> roots;           // per tree: its root among the nodes to walk
  std::vector<uint32_t> node_place;      // per node to walk: its leaf's place, see Tree
  std::vector<double> weights;           // of `single` trees
  std::vector<int32_t> leaf_begin;       // of other trees: per leaf, into leaf_weights
  std::vector<LeafWeight> leaf_weights;

  int32_t one_target = -1;      // the target of all trees if they are all `single` and share it
  int32_t lockstep_steps = 0;   // the most any group has
  int32_t lockstep_leaves = 0;  // the most any tree in lockstep has
  double block_cycles = 0;      // about what half a block costs through all trees
  int64_t few_rows = 0;         // up to so many rows of a block are cheaper walked one by one
  int64_t bytes() const;
};

// Throws through `node` where the trees are not trees or exceed what codes can count.
// `wide` compiles for inputs compared in double.
Forest compile_forest(const NodeSpec& node, const Ensemble& ensemble, bool wide);

// Kernels for the first `rows` rows of a block of kBlockRows. Arrays have room for the whole block,
// `codes` being [column][row]; results of the other rows mean nothing.
struct TreeKernels {
  // ranks[i] = number of keys below values[i], of sorted[i * step]; 0 for NaN. A step of 0 ranks
  // many values of one feature, a step of 1 one value each of many.
  void (*rank_f32)(const float* keys, const SortedKeys* sorted, int64_t step, int64_t count,
                   const float* values, int32_t* ranks);
  void (*rank_f64)(const double* keys, const SortedKeys* sorted, int64_t step, int64_t count,
                   const double* values, int32_t* ranks);
  // Codes of a set column from the category numbers of all the block's rows.
  void (*set_codes_8)(const uint64_t* bits, const int32_t* numbers, uint8_t* codes);
  void (*set_codes_16)(const uint64_t* bits, const int32_t* numbers, uint16_t* codes);
  void (*set_codes_32)(const uint64_t* bits, const int32_t* numbers, uint32_t* codes);
  // Computes slots 0 .. count - 1, `slots` being slot 0, 64-byte aligned; count is a multiple of
  // kGroupTrees.
  void (*lockstep_8)(const LockstepStep* steps, int64_t count, int64_t rows, const uint8_t* codes,
                     uint8_t* slots);
  void (*lockstep_16)(const LockstepStep* steps, int64_t count, int64_t rows, const uint16_t* codes,
                      uint16_t* slots);
  // sums[row] += weights[tree][leaves[tree][row]] for up to kGroupTrees trees, in their order;
  // `leaves` is [trees][kBlockRows].
  void (*add_weights_8)(const double* const* weights, int64_t trees, int64_t rows,
                        const uint8_t* leaves, double* sums);
  void (*add_weights_16)(const double* const* weights, int64_t trees, int64_t rows,
                         const uint16_t* leaves, double* sums);
};

HEADRACE_DECLARE_KERNELS(TreeKernels, kTreeKernels)

}  // namespace headrace
