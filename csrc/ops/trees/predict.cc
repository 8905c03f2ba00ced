#include "ops/trees/predict.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace headrace {
namespace {

// Paths that take their steps in turns: enough to hide the latency of one step behind the others'.
constexpr int64_t kPaths = 8;
// Steps between looks at which paths have ended.
constexpr int kStepsPerLook = 4;
// Fewer rows than this are not worth waking another thread for.
constexpr int64_t kMinRowsPerThread = 4;

template <class Code>
auto nodes_of(const Forest& forest) {
  if constexpr (sizeof(Code) == 4) {
    return forest.wide_nodes.data();
  } else {
    return forest.nodes.data();
  }
}

// Walks paths from at[path] to their leaves. A node's code is codes[column * stride], one further
// for every path if kPathPerRow. `active` has room for the paths, rounded up to kPaths.
template <bool kPathPerRow, class Code, class Node>
void walk(const Node* nodes, const Code* codes, int64_t stride, int64_t paths, uint32_t* at,
          uint32_t* active) {
  for (int64_t p = 0; p < paths; ++p) active[p] = static_cast<uint32_t>(p);
  while (paths > 0) {
    // A path that fills a gap takes the same steps twice at once, which changes nothing.
    for (int64_t i = paths; i % kPaths != 0; ++i) active[i] = active[paths - 1];
    for (int64_t i = 0; i < paths; i += kPaths) {
      uint32_t now[kPaths];
      for (int p = 0; p < kPaths; ++p) now[p] = at[active[i + p]];
      for (int step = 0; step < kStepsPerLook; ++step) {
        for (int p = 0; p < kPaths; ++p) {
          Node node = nodes[now[p]];
          int64_t row = kPathPerRow ? active[i + p] : 0;
          now[p] = node.child + (codes[node.column * stride + row] > node.threshold ? 1 : 0);
        }
      }
      for (int p = 0; p < kPaths; ++p) at[active[i + p]] = now[p];
    }
    int64_t left = 0;
    for (int64_t i = 0; i < paths; ++i) {
      uint32_t path = active[i];
      active[left] = path;
      left += nodes[at[path]].child != at[path] ? 1 : 0;
    }
    paths = left;
  }
}

}  // namespace

// What one thread needs; all of it scratch.
template <class Code>
struct ForestPredictor::Workspace {
  Code* codes;         // [columns][kBlockRows]
  Code* slots;         // lockstep: slot 0
  double* scores;      // [targets][kBlockRows]
  double* row_scores;  // [targets], at least two
  uint32_t* at;        // walked paths: a row's through all trees, or all rows' through a tree
  uint32_t* active;    // those of them that have not ended

  static int64_t round(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  static int64_t codes_bytes(const Forest& f) {
    return round(f.columns * kBlockRows * static_cast<int64_t>(sizeof(Code)));
  }
  static int64_t slots_bytes(const Forest& f) {
    int64_t slots = f.lockstep_steps + f.lockstep_leaves;
    return round(slots * kBlockRows * static_cast<int64_t>(sizeof(Code)));
  }
  static int64_t scores_bytes(const Forest& f) {
    return round(f.targets * kBlockRows * static_cast<int64_t>(sizeof(double)));
  }
  static int64_t row_bytes(const Forest& f) {
    return round(std::max(f.targets, 2) * static_cast<int64_t>(sizeof(double)));
  }
  static int64_t paths_bytes(const Forest& f) {
    auto paths = std::max<int64_t>(static_cast<int64_t>(f.trees.size()), kBlockRows) + kPaths;
    return round(paths * static_cast<int64_t>(sizeof(uint32_t)));
  }
  static int64_t bytes(const Forest& f) {
    return codes_bytes(f) + slots_bytes(f) + scores_bytes(f) + row_bytes(f) + 2 * paths_bytes(f);
  }

  Workspace(const Forest& f, std::byte* memory)
      : codes(reinterpret_cast<Code*>(memory)),
        slots(reinterpret_cast<Code*>(memory += codes_bytes(f)) + f.lockstep_leaves * kBlockRows),
        scores(reinterpret_cast<double*>(memory += slots_bytes(f))),
        row_scores(reinterpret_cast<double*>(memory += scores_bytes(f))),
        at(reinterpret_cast<uint32_t*>(memory += row_bytes(f))),
        active(reinterpret_cast<uint32_t*>(memory + paths_bytes(f))) {}

  // Writes the slots that hold leaf numbers, and codes for ensembles that ask nothing.
  void fill_constants(const Forest& f) {
    for (int64_t leaf = 0; leaf < f.lockstep_leaves; ++leaf) {
      Code* slot = slots - (leaf + 1) * kBlockRows;
      std::fill(slot, slot + kBlockRows, static_cast<Code>(leaf));
    }
    std::fill(codes, codes + kBlockRows, Code{0});
  }
};

ForestPredictor::ForestPredictor(Forest forest, Aggregate aggregate, Isa isa)
    : forest_(std::move(forest)),
      aggregate_(aggregate),
      kernels_(HEADRACE_KERNELS(isa, kTreeKernels)) {}

void ForestPredictor::start(double* scores) const {
  double first = aggregate_ == Aggregate::kMin   ? std::numeric_limits<double>::infinity()
                 : aggregate_ == Aggregate::kMax ? -std::numeric_limits<double>::infinity()
                                                 : 0.0;
  std::fill(scores, scores + forest_.targets * kBlockRows, first);
}

// Adds what the leaf at this place gives.
void ForestPredictor::add_leaf(const Tree& tree, size_t place, double* row_scores) const {
  auto add = [&](int32_t target, double value) {
    double& score = row_scores[static_cast<int64_t>(target) * kBlockRows];
    if (aggregate_ == Aggregate::kMin) {
      score = std::min(score, value);
    } else if (aggregate_ == Aggregate::kMax) {
      score = std::max(score, value);
    } else {
      score += value;
    }
  };
  if (tree.single) return add(tree.target, forest_.weights[place]);
  for (int32_t w = forest_.leaf_begin[place]; w < forest_.leaf_begin[place + 1]; ++w) {
    const LeafWeight& weight = forest_.leaf_weights[static_cast<size_t>(w)];
    add(weight.target, weight.value);
  }
}

void ForestPredictor::finish(double* scores) const {
  int64_t n = static_cast<int64_t>(forest_.targets) * kBlockRows;
  if (aggregate_ == Aggregate::kAverage) {
    auto trees = static_cast<double>(forest_.trees.size());
    for (int64_t i = 0; i < n; ++i) scores[i] /= trees;
  } else if (aggregate_ != Aggregate::kSum) {
    // A target that no leaf has a weight for scores zero.
    for (int64_t i = 0; i < n; ++i) scores[i] = std::isinf(scores[i]) ? 0.0 : scores[i];
  }
}

template <class Code>
void ForestPredictor::add_lockstep(const TreeGroup& group, Workspace<Code>& work,
                                   int64_t rows) const {
  const LockstepStep* steps = forest_.steps.data() + group.steps_begin;
  if constexpr (sizeof(Code) == 1) {
    kernels_.lockstep_8(steps, group.steps, rows, work.codes, work.slots);
  } else {
    kernels_.lockstep_16(steps, group.steps, rows, work.codes, work.slots);
  }
  for (int32_t t = 0; t < group.trees; ++t) {
    const Tree& tree = forest_.trees[static_cast<size_t>(group.first_tree + t)];
    const Code* leaf = work.slots + (group.steps - kGroupTrees + t) * kBlockRows;
    if (!tree.single || !sums()) {
      auto first = static_cast<size_t>(tree.places_begin);
      for (int64_t i = 0; i < rows; ++i) add_leaf(tree, first + leaf[i], work.scores + i);
      continue;
    }
    const double* weights = forest_.weights.data() + tree.places_begin;
    double* scores = work.scores + tree.target * int64_t{kBlockRows};
    if constexpr (sizeof(Code) == 1) {
      kernels_.add_weights_8(weights, rows, leaf, scores);
    } else {
      kernels_.add_weights_16(weights, rows, leaf, scores);
    }
  }
}

template <class Code>
void ForestPredictor::add_walked(const Tree& tree, Workspace<Code>& work, int64_t rows) const {
  std::fill(work.at, work.at + rows, static_cast<uint32_t>(tree.nodes_begin));
  walk<true>(nodes_of<Code>(forest_), work.codes, kBlockRows, rows, work.at, work.active);
  for (int64_t i = 0; i < rows; ++i) {
    add_leaf(tree, forest_.node_place[work.at[i]], work.scores + i);
  }
}

template <class Code>
void ForestPredictor::score_block(Workspace<Code>& work, int64_t rows) const {
  start(work.scores);
  for (const TreeGroup& group : forest_.groups) {
    if constexpr (sizeof(Code) < 4) {
      if (group.steps > 0) {
        add_lockstep(group, work, rows);
        continue;
      }
    }
    add_walked(forest_.trees[static_cast<size_t>(group.first_tree)], work, rows);
  }
}

template <class Code>
void ForestPredictor::score_row(Workspace<Code>& work, int64_t slot) const {
  auto trees = static_cast<int64_t>(forest_.trees.size());
  std::copy(forest_.roots.begin(), forest_.roots.end(), work.at);
  walk<false>(nodes_of<Code>(forest_), work.codes, 1, trees, work.at, work.active);
  if (forest_.one_target >= 0 && sums()) {
    double sum = 0;
    for (int64_t t = 0; t < trees; ++t) sum += forest_.weights[forest_.node_place[work.at[t]]];
    work.scores[forest_.one_target * int64_t{kBlockRows} + slot] = sum;
    return;
  }
  for (int64_t t = 0; t < trees; ++t) {
    add_leaf(forest_.trees[static_cast<size_t>(t)], forest_.node_place[work.at[t]],
             work.scores + slot);
  }
}

// Full blocks cost least per row; smaller ones bring in more threads.
int64_t ForestPredictor::block_rows_for(int64_t rows, int threads) const {
  int64_t share = (rows + threads - 1) / threads;
  if (forest_.lockstep_steps > 0) return share <= kHalfBlockRows ? kHalfBlockRows : kBlockRows;
  return std::clamp<int64_t>((share + kPaths - 1) / kPaths * kPaths, kPaths, kBlockRows);
}

template <class T, class Code>
void ForestPredictor::predict_typed(const OpRun& run, const FeatureTable& table,
                                    EmitScores emit) const {
  int64_t stride = Workspace<Code>::bytes(forest_);
  std::byte* memory = run.scratch(stride * run.threads());
  Encoder<T, Code> encoder(forest_, kernels_);
  int64_t few = std::min<int64_t>(forest_.few_rows, kBlockRows);
  auto rows_alone = [&](Workspace<Code>& work, int64_t row, int64_t rows) {
    start(work.scores);
    work.codes[0] = 0;
    for (int64_t i = 0; i < rows; ++i) {
      encoder.encode_row(table, row + i, work.codes);
      score_row(work, i);
    }
    finish(work.scores);
    emit(row, rows, work.scores, work.row_scores);
  };
  if (table.rows <= few) {
    run.parallel_ranges(table.rows, kMinRowsPerThread, [&](int64_t begin, int64_t end, int thread) {
      Workspace<Code> work(forest_, memory + stride * thread);
      rows_alone(work, begin, end - begin);
    });
    return;
  }
  int64_t block_rows = block_rows_for(table.rows, run.threads());
  int64_t blocks = (table.rows + block_rows - 1) / block_rows;
  run.parallel(blocks, [&](int64_t block, int thread) {
    Workspace<Code> work(forest_, memory + stride * thread);
    int64_t row = block * block_rows;
    int64_t rows = std::min<int64_t>(block_rows, table.rows - row);
    if (rows <= few) return rows_alone(work, row, rows);
    work.fill_constants(forest_);
    encoder.encode_block(table, row, rows, work.codes);
    score_block(work, rows);
    finish(work.scores);
    emit(row, rows, work.scores, work.row_scores);
  });
}

void ForestPredictor::predict(const OpRun& run, const FeatureTable& table, EmitScores emit) const {
  if (table.rows == 0) return;
  auto typed = [&]<class T>(T) {
    if (forest_.code_bits == 8) return predict_typed<T, uint8_t>(run, table, emit);
    if (forest_.code_bits == 16) return predict_typed<T, uint16_t>(run, table, emit);
    return predict_typed<T, uint32_t>(run, table, emit);
  };
  if (table.dtype == DType::kF32) {
    typed(float{});
  } else {
    typed(double{});
  }
}

}  // namespace headrace
