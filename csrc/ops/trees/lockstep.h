// Deciding which trees are evaluated in lockstep, and laying out their steps.
#pragma once

#include <vector>

#include "ops/trees/forest.h"

namespace headrace {

// A branch of a tree whose branches are numbered with parents before children.
struct PlacedBranch {
  uint32_t column;
  uint32_t threshold;
  int32_t child[2];  // for "no" and "yes": a branch's number, or ~number of a leaf
};

class LockstepBuilder {
 public:
  LockstepBuilder(Isa isa, Forest& forest) : isa_(isa), forest_(forest) {}

  // Puts the last of the forest's trees, which has these branches, into a group.
  void add(const std::vector<PlacedBranch>& branches);
  // Call once, after the last tree.
  void finish();

 private:
  // From one column or slot to the next.
  int slot_units() const { return kBlockRows * forest_.code_bits / 8 / kLockstepUnit; }
  double block_cycles(int64_t steps) const;
  std::vector<LockstepStep> steps_of(const Tree& tree,
                                     const std::vector<PlacedBranch>& branches) const;
  void end_group();
  int32_t span_trees() const;
  void end_span();

  Isa isa_;
  Forest& forest_;
  std::vector<std::vector<LockstepStep>> pending_;  // of the last trees: a group not yet full
  int32_t pending_first_ = 0;                       // the first of those trees
  double lockstep_cycles_ = 0;                      // per block, all trees in lockstep
  double row_cycles_ = 0;                           // per row, the same trees walked
  double walk_cycles_ = 0;                          // per row, all the other trees
};

}  // namespace headrace
