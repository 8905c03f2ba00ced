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
// A block of fewer cycles is not worth splitting over threads: several times what waking one costs.
constexpr double kMinSplitCycles = 20000;
// Keeps the partial scores of a block that is split in the second-level cache.
constexpr int64_t kMaxPartialsBytes = 256 * 1024;

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
  double* partial;     // like scores, of one span of trees
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
    return codes_bytes(f) + slots_bytes(f) + 2 * scores_bytes(f) + row_bytes(f) +
           2 * paths_bytes(f);
  }

  Workspace(const Forest& f, std::byte* memory)
      : codes(reinterpret_cast<Code*>(memory)),
        slots(reinterpret_cast<Code*>(memory += codes_bytes(f)) + f.lockstep_leaves * kBlockRows),
        scores(reinterpret_cast<double*>(memory += slots_bytes(f))),
        partial(reinterpret_cast<double*>(memory += scores_bytes(f))),
        row_scores(reinterpret_cast<double*>(memory += scores_bytes(f))),
        at(reinterpret_cast<uint32_t*>(memory += row_bytes(f))),
        active(reinterpret_cast<uint32_t*>(memory + paths_bytes(f))) {}

  // Writes the slots that hold leaf numbers.
  void fill_leaves(const Forest& f) {
    for (int64_t leaf = 0; leaf < f.lockstep_leaves; ++leaf) {
      Code* slot = slots - (leaf + 1) * kBlockRows;
      std::fill(slot, slot + kBlockRows, static_cast<Code>(leaf));
    }
  }
};

ForestPredictor::ForestPredictor(Forest forest, Aggregate aggregate, Isa isa)
    : forest_(std::move(forest)),
      aggregate_(aggregate),
      kernels_(HEADRACE_KERNELS(isa, kTreeKernels)) {}

double ForestPredictor::neutral() const {
  if (aggregate_ == Aggregate::kMin) return std::numeric_limits<double>::infinity();
  if (aggregate_ == Aggregate::kMax) return -std::numeric_limits<double>::infinity();
  return 0;
}

void ForestPredictor::start(double* scores) const {
  std::fill(scores, scores + forest_.targets * kBlockRows, neutral());
}

// Adds what one more span of trees gives to `rows` rows.
void ForestPredictor::fold(const double* partial, int64_t rows, double* scores) const {
  for (int32_t k = 0; k < forest_.targets; ++k, partial += kBlockRows, scores += kBlockRows) {
    for (int64_t i = 0; i < rows; ++i) scores[i] = folded(scores[i], partial[i]);
  }
}

// Adds what the leaf at this place gives.
void ForestPredictor::add_leaf(const Tree& tree, size_t place, double* row_scores) const {
  auto add = [&](int32_t target, double value) {
    double& score = row_scores[static_cast<int64_t>(target) * kBlockRows];
    score = folded(score, value);
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
  const Code* leaves = work.slots + (group.steps - kGroupTrees) * kBlockRows;
  const Tree* trees = forest_.trees.data() + group.first_tree;
  auto add = [&](int32_t first, int32_t count) {
    const double* weights[kGroupTrees];
    for (int32_t t = 0; t < count; ++t) {
      weights[t] = forest_.weights.data() + trees[first + t].places_begin;
    }
    double* scores = work.partial + trees[first].target * int64_t{kBlockRows};
    if constexpr (sizeof(Code) == 1) {
      kernels_.add_weights_8(weights, count, rows, leaves + first * kBlockRows, scores);
    } else {
      kernels_.add_weights_16(weights, count, rows, leaves + first * kBlockRows, scores);
    }
  };
  if (group.one_target && sums()) return add(0, group.trees);
  for (int32_t t = 0; t < group.trees; ++t) {
    if (trees[t].single && sums()) {
      add(t, 1);
      continue;
    }
    auto first = static_cast<size_t>(trees[t].places_begin);
    const Code* leaf = leaves + t * kBlockRows;
    for (int64_t i = 0; i < rows; ++i) add_leaf(trees[t], first + leaf[i], work.partial + i);
  }
}

template <class Code>
void ForestPredictor::add_walked(const Tree& tree, Workspace<Code>& work, int64_t rows) const {
  std::fill(work.at, work.at + rows, static_cast<uint32_t>(tree.nodes_begin));
  walk<true>(nodes_of<Code>(forest_), work.codes, kBlockRows, rows, work.at, work.active);
  for (int64_t i = 0; i < rows; ++i) {
    add_leaf(tree, forest_.node_place[work.at[i]], work.partial + i);
  }
}

// The scores that one span's trees give to a block, in work.partial.
template <class Code>
void ForestPredictor::score_span(const TreeSpan& span, Workspace<Code>& work, int64_t rows) const {
  start(work.partial);
  for (int32_t g = span.first_group; g < span.first_group + span.groups; ++g) {
    const TreeGroup& group = forest_.groups[static_cast<size_t>(g)];
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
  std::copy(forest_.roots.begin(), forest_.roots.end(), work.at);
  walk<false>(nodes_of<Code>(forest_), work.codes, 1, static_cast<int64_t>(forest_.trees.size()),
              work.at, work.active);
  double* scores = work.scores + slot;
  double* partial = work.partial + slot;
  for (const TreeSpan& span : forest_.spans) {
    int32_t end = span.first_tree + span.trees;
    if (forest_.one_target >= 0 && sums()) {
      double sum = 0;
      for (int32_t t = span.first_tree; t < end; ++t) {
        sum += forest_.weights[forest_.node_place[work.at[t]]];
      }
      scores[forest_.one_target * int64_t{kBlockRows}] += sum;
      continue;
    }
    for (int32_t k = 0; k < forest_.targets; ++k) partial[k * kBlockRows] = neutral();
    for (int32_t t = span.first_tree; t < end; ++t) {
      add_leaf(forest_.trees[static_cast<size_t>(t)], forest_.node_place[work.at[t]], partial);
    }
    fold(partial, 1, scores);
  }
}

// Full blocks cost least per row; smaller ones bring in more threads.
int64_t ForestPredictor::block_rows_for(int64_t rows, int threads) const {
  int64_t share = (rows + threads - 1) / threads;
  if (forest_.lockstep_steps > 0) return share <= kHalfBlockRows ? kHalfBlockRows : kBlockRows;
  return std::clamp<int64_t>((share + kPaths - 1) / kPaths * kPaths, kPaths, kBlockRows);
}

// Rows one by one, each through all trees at once.
template <class T, class Code>
void ForestPredictor::predict_rows(const FeatureTable& table, int64_t row, int64_t rows,
                                   Workspace<Code>& work, EmitScores emit) const {
  Encoder<T, Code> encoder(forest_, kernels_);
  start(work.scores);
  work.codes[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    encoder.encode_row(table, row + i, work.codes);
    score_row(work, i);
  }
  finish(work.scores);
  emit(row, rows, work.scores, work.row_scores);
}

// One block on one thread.
template <class T, class Code>
void ForestPredictor::predict_block(const FeatureTable& table, int64_t row, int64_t rows,
                                    Workspace<Code>& work, EmitScores emit) const {
  work.fill_leaves(forest_);
  std::fill(work.codes, work.codes + kBlockRows, Code{0});  // for trees that ask nothing
  Encoder<T, Code>(forest_, kernels_).encode_block(table, row, rows, work.codes);
  start(work.scores);
  for (const TreeSpan& span : forest_.spans) {
    score_span(span, work, rows);
    fold(work.partial, rows, work.scores);
  }
  finish(work.scores);
  emit(row, rows, work.scores, work.row_scores);
}

// One block with its trees spread over the threads, span by span.
template <class T, class Code>
void ForestPredictor::predict_spans(const OpRun& run, const FeatureTable& table, int64_t row,
                                    int64_t rows, std::byte* memory, std::byte* partials,
                                    EmitScores emit) const {
  int64_t stride = Workspace<Code>::bytes(forest_);
  int64_t partial_bytes = Workspace<Code>::scores_bytes(forest_);
  Workspace<Code> own(forest_, memory);
  std::fill(own.codes, own.codes + kBlockRows, Code{0});
  Encoder<T, Code>(forest_, kernels_).encode_block(table, row, rows, own.codes);
  auto partial_of = [&](int64_t span) {
    return reinterpret_cast<double*>(partials + span * partial_bytes);
  };
  // In ranges, so that the same trees tend to stay in the same core's cache from run to run.
  auto spans = static_cast<int64_t>(forest_.spans.size());
  run.parallel_ranges(spans, 1, [&](int64_t begin, int64_t end, int thread) {
    Workspace<Code> work(forest_, memory + stride * thread);
    work.fill_leaves(forest_);
    work.codes = own.codes;
    for (int64_t span = begin; span < end; ++span) {
      work.partial = partial_of(span);
      score_span(forest_.spans[static_cast<size_t>(span)], work, rows);
    }
  });
  start(own.scores);
  for (int64_t span = 0; span < spans; ++span) fold(partial_of(span), rows, own.scores);
  finish(own.scores);
  emit(row, rows, own.scores, own.row_scores);
}

// All of these give a row the same bits: trees are summed in spans that the Forest fixes.
template <class T, class Code>
void ForestPredictor::predict_typed(const OpRun& run, const FeatureTable& table,
                                    EmitScores emit) const {
  int64_t stride = Workspace<Code>::bytes(forest_);
  std::byte* memory = run.scratch(stride * run.threads());
  int64_t few = std::min<int64_t>(forest_.few_rows, kBlockRows);
  if (table.rows <= few) {
    run.parallel_ranges(table.rows, kMinRowsPerThread, [&](int64_t begin, int64_t end, int thread) {
      Workspace<Code> work(forest_, memory + stride * thread);
      predict_rows<T>(table, begin, end - begin, work, emit);
    });
    return;
  }
  int64_t block_rows = block_rows_for(table.rows, run.threads());
  int64_t blocks = (table.rows + block_rows - 1) / block_rows;
  int64_t partials_bytes =
      static_cast<int64_t>(forest_.spans.size()) * Workspace<Code>::scores_bytes(forest_);
  if (2 * blocks <= run.threads() && forest_.block_cycles > kMinSplitCycles &&
      partials_bytes <= kMaxPartialsBytes) {
    std::byte* partials = run.scratch(partials_bytes);
    for (int64_t row = 0; row < table.rows; row += block_rows) {
      int64_t rows = std::min(block_rows, table.rows - row);
      predict_spans<T, Code>(run, table, row, rows, memory, partials, emit);
    }
    return;
  }
  run.parallel(blocks, [&](int64_t block, int thread) {
    Workspace<Code> work(forest_, memory + stride * thread);
    int64_t row = block * block_rows;
    int64_t rows = std::min<int64_t>(block_rows, table.rows - row);
    if (rows <= few) return predict_rows<T>(table, row, rows, work, emit);
    predict_block<T>(table, row, rows, work, emit);
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
