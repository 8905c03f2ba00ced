#include "ops/trees/lockstep.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace headrace {
namespace {

// Cycles per unit of work, measured on a Zen 4; only their ratios matter, and only for speed.
constexpr double kStepCycles = 4;    // one branch in lockstep, per vector
constexpr double kWeightCycles = 1;  // adding a row's leaf, per tree in lockstep
constexpr double kWalkCycles = 3;    // one level of a walk, paths interleaved

// With nothing in lockstep: few rows have more paths in flight in all trees than in one.
constexpr int64_t kFewRowsWalked = 4;

// Some microseconds of work for half a block.
constexpr int32_t kMinSpanTrees = 32;

// Far above where walking gets cheaper; keeps the offsets of slots in 16 bits.
constexpr int32_t kMaxLockstepBranches = 500;

}  // namespace

// Of a whole block through one tree.
double LockstepBuilder::block_cycles(int64_t steps) const {
  int vector_bytes = isa_ >= Isa::kAvx512 ? 64 : isa_ == Isa::kAvx2 ? 32 : 16;
  double vectors = kBlockRows * (forest_.code_bits / 8.0) / vector_bytes;
  // Cores with narrower vectors have more of them in flight.
  double cycles = vector_bytes == 64 ? kStepCycles : kStepCycles / 2;
  return static_cast<double>(steps) * vectors * cycles + kBlockRows * kWeightCycles;
}

// The steps of one tree, with if_true and if_false numbering steps of this tree only; none if
// walking it is cheaper.
std::vector<LockstepStep> LockstepBuilder::steps_of(
    const Tree& tree, const std::vector<PlacedBranch>& branches) const {
  std::vector<LockstepStep> steps;
  auto count = static_cast<int32_t>(branches.size());
  bool counts = forest_.code_bits == 8    ? tree.leaves <= 256
                : forest_.code_bits == 16 ? tree.leaves <= kMaxLockstepBranches
                                          : false;
  if (!counts || count == 0 || count > kMaxLockstepBranches ||
      (forest_.columns - 1) * slot_units() > std::numeric_limits<uint16_t>::max() ||
      block_cycles(count) > tree.mean_depth * kWalkCycles * kBlockRows) {
    return steps;
  }
  // Children come after their parent, so backwards they come first.
  auto slot = [&](int32_t number) {
    return static_cast<int16_t>(number < 0 ? number : count - 1 - number);
  };
  for (int32_t i = count - 1; i >= 0; --i) {
    const PlacedBranch& branch = branches[static_cast<size_t>(i)];
    steps.push_back({static_cast<uint16_t>(branch.column * static_cast<uint32_t>(slot_units())),
                     static_cast<uint16_t>(branch.threshold), slot(branch.child[1]),
                     slot(branch.child[0])});
  }
  return steps;
}

// Closes the group of trees that `pending_` has the steps of.
void LockstepBuilder::end_group() {
  if (pending_.empty()) return;
  size_t turns = 0;
  for (const auto& steps : pending_) turns = std::max(turns, steps.size());
  TreeGroup group{.first_tree = pending_first_,
                  .trees = static_cast<int32_t>(pending_.size()),
                  .steps_begin = static_cast<int64_t>(forest_.steps.size()),
                  .steps = static_cast<int32_t>(turns * kGroupTrees),
                  .one_target = true};
  const Tree* trees = forest_.trees.data() + pending_first_;
  for (const Tree* tree = trees; tree < trees + group.trees; ++tree) {
    group.one_target = group.one_target && tree->single && tree->target == trees->target;
  }
  for (size_t turn = 0; turn < turns; ++turn) {
    for (size_t t = 0; t < kGroupTrees; ++t) {
      auto slot = [&](int own) {
        int number = own < 0 ? own : own * kGroupTrees + static_cast<int>(t);
        return static_cast<int16_t>(number * slot_units());
      };
      LockstepStep step{0, 0, slot(-1), slot(-1)};
      if (t < pending_.size() && turn < pending_[t].size()) {
        step = pending_[t][turn];
        step.if_true = slot(step.if_true);
        step.if_false = slot(step.if_false);
      } else if (t < pending_.size()) {
        step.if_true = step.if_false = slot(static_cast<int>(turn) - 1);
      }
      forest_.steps.push_back(step);
    }
  }
  forest_.lockstep_steps = std::max(forest_.lockstep_steps, group.steps);
  forest_.groups.push_back(group);
  pending_.clear();
}

void LockstepBuilder::add(const std::vector<PlacedBranch>& branches) {
  const Tree& tree = forest_.trees.back();
  auto index = static_cast<int32_t>(forest_.trees.size()) - 1;
  if (index % span_trees() == 0) end_span();
  std::vector<LockstepStep> steps = steps_of(tree, branches);
  if (steps.empty()) {
    end_group();
    walk_cycles_ += tree.mean_depth * kWalkCycles;
    forest_.groups.push_back(
        {.first_tree = index, .trees = 1, .steps_begin = 0, .steps = 0, .one_target = false});
    return;
  }
  lockstep_cycles_ += block_cycles(static_cast<int64_t>(steps.size()));
  row_cycles_ += tree.mean_depth * kWalkCycles;
  forest_.lockstep_leaves = std::max(forest_.lockstep_leaves, tree.leaves);
  if (pending_.empty()) pending_first_ = index;
  pending_.push_back(std::move(steps));
  if (pending_.size() == kGroupTrees) end_group();
}

// Folding a span into the scores should cost little next to its trees.
int32_t LockstepBuilder::span_trees() const {
  return std::max(kMinSpanTrees, 2 * kGroupTrees * forest_.targets);
}

void LockstepBuilder::end_span() {
  end_group();
  auto groups = static_cast<int32_t>(forest_.groups.size());
  int32_t first =
      forest_.spans.empty() ? 0 : forest_.spans.back().first_group + forest_.spans.back().groups;
  if (first == groups) return;
  const TreeGroup& last = forest_.groups.back();
  int32_t first_tree = forest_.groups[static_cast<size_t>(first)].first_tree;
  forest_.spans.push_back({.first_tree = first_tree,
                           .trees = last.first_tree + last.trees - first_tree,
                           .first_group = first,
                           .groups = groups - first});
}

void LockstepBuilder::finish() {
  end_span();
  forest_.block_cycles = lockstep_cycles_ / 2 + walk_cycles_ * kHalfBlockRows;
  // What half a block costs in lockstep, in rows that are walked instead.
  forest_.few_rows =
      row_cycles_ > 0 ? static_cast<int64_t>(lockstep_cycles_ / 2 / row_cycles_) : kFewRowsWalked;
}

}  // namespace headrace
