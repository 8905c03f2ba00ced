// Tree ensembles: a thread per row, and as many trees at a time in shared memory as fit. A row's
// trees are summed in their order, in double, so that nobody else's rows change its bits.
#include "cuda/kernel.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/ml/scores.h"
#include "ops/trees/ensemble.h"

namespace headrace::cuda {
namespace {

constexpr unsigned kTreeThreads = 128;
// Nodes of a chunk of trees: 36 KiB, so that a multiprocessor holds several blocks.
constexpr int kChunkNodes = 1536;

// A branch; children as in ops/trees/ensemble.h, but counted from the tree's first node.
struct Node {
  double value;
  int32_t feature;
  NodeRef if_true;
  NodeRef if_false;
  uint8_t test;
  uint8_t nan_true;
};
static_assert(sizeof(Node) == 24);

struct TreeSpanOf {
  int32_t first_node;  // of all trees' nodes
  int32_t first_leaf;
  NodeRef root;
};

// Neighbouring trees whose nodes fit in shared memory together, or one that does not fit alone.
struct Chunk {
  int32_t first_tree, trees;
  int32_t first_node, nodes;
};

struct Forest {
  const Node* nodes;
  const TreeSpanOf* trees;
  const Chunk* chunks;
  int32_t chunk_count;
  const int32_t* leaf_begin;
  const LeafWeight* weights;
  int32_t targets;
};

// What becomes of the sums: `labels` for a classifier, else null.
struct Finish {
  PostTransform transform;
  double scale;  // 1 / trees for an average
  const double* base;
  const int64_t* labels;
  int32_t classes;
  bool probability;  // see TreeClassifier
  int64_t* label_out;
  void* out;  // scores; may be null
  bool out_f64;
};

struct SharedNodes {
  Node nodes[kChunkNodes];
};

__device__ bool goes_true(const Node& node, double x) {
  auto test = static_cast<BranchTest>(node.test);
  if (x != x) return test == BranchTest::kNeq || node.nan_true != 0;
  switch (test) {
    case BranchTest::kLeq:
      return x <= node.value;
    case BranchTest::kLt:
      return x < node.value;
    case BranchTest::kGte:
      return x >= node.value;
    case BranchTest::kGt:
      return x > node.value;
    case BranchTest::kEq:
      return x == node.value;
    default:
      return x != node.value;
  }
}

template <class T>
__device__ int32_t leaf_of(const Node* nodes, NodeRef ref, const T* row) {
  while (ref >= 0) {
    const Node& node = nodes[ref];
    ref = goes_true(node, static_cast<double>(row[node.feature])) ? node.if_true : node.if_false;
  }
  return ~ref;
}

__device__ double logistic_of(double score) {
  double e = 1.0 / (1.0 + exp(-fabs(score)));
  return score < 0 ? 1.0 - e : e;
}

__device__ void transform(PostTransform how, double* scores, int32_t count) {
  if (how == PostTransform::kLogistic) {
    for (int32_t i = 0; i < count; ++i) scores[i] = logistic_of(scores[i]);
  } else if (how == PostTransform::kSoftmax) {
    double max = scores[0], sum = 0;
    for (int32_t i = 1; i < count; ++i) max = scores[i] > max ? scores[i] : max;
    for (int32_t i = 0; i < count; ++i) sum += scores[i] = exp(scores[i] - max);
    for (int32_t i = 0; i < count; ++i) scores[i] /= sum;
  }
}

// From the score of the second of two classes to both; returns the label's index.
__device__ int32_t score_two(const Finish& f, double* scores) {
  double score = scores[0];
  if (f.transform == PostTransform::kLogistic) {
    scores[0] = logistic_of(-score);
    scores[1] = logistic_of(score);
    return score > 0 ? 1 : 0;
  }
  bool probability = f.probability && f.transform == PostTransform::kNone;
  scores[0] = probability ? 1.0 - score : -score;
  scores[1] = score;
  transform(f.transform, scores, 2);
  return score > (probability ? 0.5 : 0.0) ? 1 : 0;
}

__device__ void finish_row(const Finish& f, double* scores, int32_t targets, int64_t row) {
  for (int32_t t = 0; t < targets; ++t) {
    scores[t] = scores[t] * f.scale + (f.base == nullptr ? 0.0 : f.base[t]);
  }
  int32_t count = targets;
  if (f.labels != nullptr) {
    int32_t best = 0;
    if (targets == 1) {
      best = score_two(f, scores);
    } else {
      for (int32_t t = 1; t < targets; ++t) best = scores[t] > scores[best] ? t : best;
      transform(f.transform, scores, targets);
    }
    if (f.label_out != nullptr) f.label_out[row] = f.labels[best];
    count = f.classes;
  } else {
    transform(f.transform, scores, targets);
  }
  for (int32_t t = 0; t < count && f.out != nullptr; ++t) {
    int64_t at = row * count + t;
    if (f.out_f64) {
      static_cast<double*>(f.out)[at] = scores[t];
    } else {
      static_cast<float*>(f.out)[at] = static_cast<float>(scores[t]);
    }
  }
}

// Rows of one width; `sums` has room for the scores of each row.
template <class T>
__global__ void __launch_bounds__(kTreeThreads)
    trees_kernel(Forest forest, Finish finish, const T* x, int64_t rows, int64_t features,
                 int64_t first_row, double* sums, int32_t room) {
  auto& shared = shared_memory<SharedNodes>();
  int64_t row = int64_t{blockIdx.x} * kTreeThreads + threadIdx.x;
  bool inside = row < rows;
  const T* values = x + (inside ? row : 0) * features;
  double* scores = sums + (first_row + (inside ? row : 0)) * room;
  for (int32_t t = 0; t < forest.targets && inside; ++t) scores[t] = 0;
  for (int32_t c = 0; c < forest.chunk_count; ++c) {
    const Chunk& chunk = forest.chunks[c];
    bool fits = chunk.nodes <= kChunkNodes;
    // All threads copy, rows or not: all meet at the barriers.
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunk.nodes && fits;
         i += static_cast<int32_t>(kTreeThreads)) {
      shared.nodes[i] = forest.nodes[chunk.first_node + i];
    }
    __syncthreads();
    for (int32_t t = chunk.first_tree; t < chunk.first_tree + chunk.trees && inside; ++t) {
      const TreeSpanOf& tree = forest.trees[t];
      const Node* nodes = fits ? shared.nodes + (tree.first_node - chunk.first_node)
                               : forest.nodes + tree.first_node;
      int32_t leaf = tree.first_leaf + leaf_of(nodes, tree.root, values);
      for (int32_t w = forest.leaf_begin[leaf]; w < forest.leaf_begin[leaf + 1]; ++w) {
        scores[forest.weights[w].target] += forest.weights[w].value;
      }
    }
    __syncthreads();
  }
  if (inside) finish_row(finish, scores, forest.targets, first_row + row);
}

// An Ensemble with its nodes and leaves in the order of the trees.
struct Sorted {
  std::vector<Node> nodes;
  std::vector<TreeSpanOf> trees;
  std::vector<Chunk> chunks;
  std::vector<int32_t> leaf_begin{0};
  std::vector<LeafWeight> weights;
};

class Sorter {
 public:
  Sorter(const NodeSpec& spec, const Ensemble& from) : spec_(spec), from_(from) {}

  Sorted run() {
    for (NodeRef root : from_.roots) {
      TreeSpanOf tree{static_cast<int32_t>(to_.nodes.size()),
                      static_cast<int32_t>(to_.leaf_begin.size()) - 1, 0};
      tree.root = add_tree(tree, root);
      to_.trees.push_back(tree);
      add_to_chunk(static_cast<int32_t>(to_.nodes.size()) - tree.first_node, tree.first_node);
    }
    return std::move(to_);
  }

 private:
  // Breadth first: what a warp's rows reach together lies together.
  NodeRef add_tree(const TreeSpanOf& tree, NodeRef root) {
    if (root < 0) return add_leaf(tree, root);
    std::vector<NodeRef> queue{root};
    for (size_t i = 0; i < queue.size(); ++i) {
      if (queue.size() > from_.branches.size()) spec_.invalid("its trees are not trees");
      const Branch& branch = from_.branches[static_cast<size_t>(queue[i])];
      if (branch.test == BranchTest::kMember) {
        spec_.unsupported("device cuda: branches that ask for members of a set");
      }
      auto child = [&](NodeRef ref) -> NodeRef {
        if (ref < 0) return add_leaf(tree, ref);
        queue.push_back(ref);
        return static_cast<NodeRef>(queue.size()) - 1;
      };
      Node node{branch.value,   branch.feature, 0, 0, static_cast<uint8_t>(branch.test),
                branch.nan_true};
      node.if_true = child(branch.if_true);
      node.if_false = child(branch.if_false);
      to_.nodes.push_back(node);
    }
    return 0;
  }

  // Returns the leaf's number within its tree, as a NodeRef.
  NodeRef add_leaf(const TreeSpanOf& tree, NodeRef ref) {
    auto leaf = static_cast<size_t>(~ref);
    int32_t number = static_cast<int32_t>(to_.leaf_begin.size()) - 1 - tree.first_leaf;
    for (int32_t w = from_.leaf_begin[leaf]; w < from_.leaf_begin[leaf + 1]; ++w) {
      to_.weights.push_back(from_.weights[static_cast<size_t>(w)]);
    }
    to_.leaf_begin.push_back(static_cast<int32_t>(to_.weights.size()));
    return ~number;
  }

  void add_to_chunk(int32_t nodes, int32_t first_node) {
    if (to_.chunks.empty() || to_.chunks.back().nodes + nodes > kChunkNodes) {
      to_.chunks.push_back({static_cast<int32_t>(to_.trees.size()) - 1, 0, first_node, 0});
    }
    to_.chunks.back().trees += 1;
    to_.chunks.back().nodes += nodes;
  }

  const NodeSpec& spec_;
  const Ensemble& from_;
  Sorted to_;
};

class TreesOp final : public CudaOp {
 public:
  struct Parts {
    Finish finish;  // without pointers
    std::vector<double> base;
    std::vector<int64_t> labels;
    size_t scores_output;
  };

  TreesOp(const CudaNode& node, const Ensemble& ensemble, const Parts& parts)
      : finish_(parts.finish),
        targets_(ensemble.targets),
        room_(std::max(ensemble.targets, parts.finish.classes)),
        scores_output_(parts.scores_output) {
    Sorted sorted = Sorter(node.spec, ensemble).run();
    chunk_count_ = static_cast<int32_t>(sorted.chunks.size());
    nodes_ = node.upload(std::span<const Node>(sorted.nodes));
    trees_ = node.upload(std::span<const TreeSpanOf>(sorted.trees));
    chunks_ = node.upload(std::span<const Chunk>(sorted.chunks));
    leaf_begin_ = node.upload(std::span<const int32_t>(sorted.leaf_begin));
    weights_ = node.upload(std::span<const LeafWeight>(sorted.weights));
    base_ = node.upload(std::span<const double>(parts.base));
    labels_ = node.upload(std::span<const int64_t>(parts.labels));
  }

  int64_t device_bytes() const override {
    int64_t bytes = 0;
    for (const auto* part :
         {&nodes_, &trees_, &chunks_, &leaf_begin_, &weights_, &base_, &labels_}) {
      bytes += part->bytes();
    }
    return bytes;
  }

  void run(CudaRun& run) const override {
    switch (run.input(0).dtype) {
      case DType::kF32:
        return run_as<float>(run);
      case DType::kF64:
        return run_as<double>(run);
      case DType::kI32:
        return run_as<int32_t>(run);
      default:
        return run_as<int64_t>(run);
    }
  }

 private:
  template <class T>
  void run_as(CudaRun& run) const {
    const Segments& x = run.input(0);
    int64_t all = 0;
    for (size_t r = 0; r < run.requests(); ++r) all += rows_of(x.shape(r));
    if (all == 0) return;
    Forest forest{nodes_.as<Node>(), trees_.as<TreeSpanOf>(),   chunks_.as<Chunk>(),
                  chunk_count_,      leaf_begin_.as<int32_t>(), weights_.as<LeafWeight>(),
                  targets_};
    Finish finish = finish_;
    finish.base = base_.as<double>();
    finish.labels = labels_.as<int64_t>();
    finish.out = run.out<void>(scores_output_);
    finish.out_f64 =
        run.has_output(scores_output_) && run.output(scores_output_).dtype == DType::kF64;
    finish.label_out = labels_.bytes() > 0 ? run.out<int64_t>(0) : nullptr;
    auto* sums =
        reinterpret_cast<double*>(run.scratch(all * room_ * static_cast<int64_t>(sizeof(double))));
    // Requests of one width are one table.
    int64_t first_row = 0;
    for (size_t r = 0; r < run.requests();) {
      int64_t features = width_of(x.shape(r));
      const T* from = run.in<T>(0, r);
      int64_t rows = 0;
      do rows += rows_of(x.shape(r));
      while (++r < run.requests() && width_of(x.shape(r)) == features);
      if (rows == 0) continue;
      launch(run.stream(), {blocks_for(rows, kTreeThreads), kTreeThreads, sizeof(SharedNodes)},
             trees_kernel<T>, forest, finish, from, rows, features, first_row, sums, room_);
      first_row += rows;
    }
  }

  static int64_t rows_of(const Shape& shape) { return shape.rank() == 1 ? 1 : shape[0]; }
  static int64_t width_of(const Shape& shape) { return shape[shape.rank() - 1]; }

  Finish finish_;
  int32_t targets_;
  int32_t room_;  // scores that a row has
  size_t scores_output_;
  int32_t chunk_count_ = 0;
  DeviceMemory nodes_, trees_, chunks_, leaf_begin_, weights_, base_, labels_;
};

std::vector<double> base_values(const NodeSpec& spec) {
  std::vector<double> tensor = spec.floats("base_values_as_tensor");
  return tensor.empty() ? spec.floats("base_values") : tensor;
}

PostTransform checked(const NodeSpec& spec, PostTransform transform) {
  bool known = transform == PostTransform::kNone || transform == PostTransform::kSoftmax ||
               transform == PostTransform::kLogistic;
  if (!known) spec.unsupported("device cuda: post_transform SOFTMAX_ZERO or PROBIT");
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
  return transform;
}

std::unique_ptr<CudaOp> make(const CudaNode& node, const Ensemble& ensemble, bool average,
                             PostTransform transform, std::vector<double> base) {
  TreesOp::Parts parts{};
  parts.finish.transform = transform;
  parts.finish.scale = average ? 1.0 / static_cast<double>(ensemble.roots.size()) : 1.0;
  parts.base = std::move(base);
  return std::make_unique<TreesOp>(node, ensemble, parts);
}

std::unique_ptr<CudaOp> make_regressor(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  std::string aggregate = spec.string_or("aggregate_function", "SUM");
  if (aggregate != "SUM" && aggregate != "AVERAGE") {
    spec.unsupported("device cuda: aggregate_function " + aggregate);
  }
  auto targets = static_cast<int32_t>(spec.int_or("n_targets", 1));
  PostTransform transform = checked(spec, post_transform_of(spec));
  return make(node, parse_ensemble(spec, "target", targets), aggregate == "AVERAGE", transform,
              base_values(spec));
}

std::unique_ptr<CudaOp> make_ensemble(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  constexpr int64_t kAverage = 0, kSum = 1;
  int64_t aggregate = spec.int_or("aggregate_function", kSum);
  if (aggregate != kAverage && aggregate != kSum) {
    spec.unsupported(str("device cuda: aggregate_function ", aggregate));
  }
  constexpr PostTransform kTransforms[] = {PostTransform::kNone, PostTransform::kSoftmax,
                                           PostTransform::kLogistic, PostTransform::kSoftmaxZero,
                                           PostTransform::kProbit};
  PostTransform transform = checked(spec, kTransforms[spec.int_or("post_transform", 0)]);
  return make(node, parse_ensemble_v5(spec), aggregate == kAverage, transform, {});
}

std::unique_ptr<CudaOp> make_classifier(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  TreesOp::Parts parts{};
  parts.labels = spec.ints("classlabels_int64s");
  if (parts.labels.empty()) spec.unsupported("device cuda: labels that are strings");
  parts.finish.transform = checked(spec, post_transform_of(spec));
  parts.finish.scale = 1.0;
  parts.finish.classes = static_cast<int32_t>(parts.labels.size());
  parts.base = base_values(spec);
  parts.scores_output = 1;
  Ensemble ensemble = parse_ensemble(spec, "class", parts.finish.classes);
  bool one_class = true;
  parts.finish.probability = true;
  for (const LeafWeight& weight : ensemble.weights) {
    one_class = one_class && weight.target == ensemble.weights[0].target;
    parts.finish.probability = parts.finish.probability && weight.value >= 0;
  }
  if (parts.labels.size() == 2 && one_class) {  // as the CPU's kernel has it
    for (LeafWeight& weight : ensemble.weights) weight.target = 0;
    ensemble.targets = 1;
  }
  return std::make_unique<TreesOp>(node, ensemble, parts);
}

}  // namespace

void register_trees_cuda(CudaRegistry& registry) {
  registry.add("ai.onnx.ml.TreeEnsembleRegressor", make_regressor);
  registry.add("ai.onnx.ml.TreeEnsembleClassifier", make_classifier);
  registry.add("ai.onnx.ml.TreeEnsemble", make_ensemble);
}

}  // namespace headrace::cuda
