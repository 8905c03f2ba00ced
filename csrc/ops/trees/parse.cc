#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "core/error.h"
#include "ops/trees/ensemble.h"

namespace headrace {
namespace {

// Nodes and leaves are counted with 32 bits.
constexpr size_t kMaxNodes = size_t{1} << 30;

struct NodeKey {
  int64_t tree;
  int64_t node;
  bool operator==(const NodeKey&) const = default;
};

struct NodeKeyHash {
  size_t operator()(const NodeKey& key) const {
    return std::hash<uint64_t>()(static_cast<uint64_t>(key.tree) * 0x9e3779b97f4a7c15u +
                                 static_cast<uint64_t>(key.node));
  }
};

std::vector<double> floats_or_tensor(const NodeSpec& node, const std::string& name) {
  std::vector<double> tensor = node.floats(name + "_as_tensor");
  return tensor.empty() ? node.floats(name) : tensor;
}

void check_length(const NodeSpec& node, std::string_view name, size_t got, size_t expected) {
  if (got != expected) {
    node.invalid(str("got ", got, " values in '", name, "', expected ", expected));
  }
}

BranchTest test_named(const NodeSpec& node, const std::string& mode) {
  if (mode == "BRANCH_LEQ") return BranchTest::kLeq;
  if (mode == "BRANCH_LT") return BranchTest::kLt;
  if (mode == "BRANCH_GTE") return BranchTest::kGte;
  if (mode == "BRANCH_GT") return BranchTest::kGt;
  if (mode == "BRANCH_EQ") return BranchTest::kEq;
  if (mode == "BRANCH_NEQ") return BranchTest::kNeq;
  node.invalid(str("got mode '", mode, "' in 'nodes_modes', expected LEAF or BRANCH_ and one of ",
                   "LEQ, LT, GTE, GT, EQ, NEQ"));
}

int32_t checked_feature(const NodeSpec& node, int64_t feature) {
  if (feature < 0 || feature > std::numeric_limits<int32_t>::max()) {
    node.invalid(str("got feature ", feature, " in 'nodes_featureids', expected a 32-bit index"));
  }
  return static_cast<int32_t>(feature);
}

// The arrays of TreeEnsembleRegressor and TreeEnsembleClassifier, one element per node.
class NodeTable {
 public:
  explicit NodeTable(const NodeSpec& node)
      : node_(node),
        trees_(node.ints("nodes_treeids")),
        ids_(node.ints("nodes_nodeids")),
        features_(node.ints("nodes_featureids")),
        true_ids_(node.ints("nodes_truenodeids")),
        false_ids_(node.ints("nodes_falsenodeids")),
        nan_true_(node.ints("nodes_missing_value_tracks_true")),
        values_(floats_or_tensor(node, "nodes_values")),
        modes_(node.strings("nodes_modes")) {
    size_t n = modes_.size();
    if (n > kMaxNodes) node.unsupported(str("got ", n, " tree nodes, expected at most 2^30"));
    check_length(node, "nodes_treeids", trees_.size(), n);
    check_length(node, "nodes_nodeids", ids_.size(), n);
    check_length(node, "nodes_featureids", features_.size(), n);
    check_length(node, "nodes_truenodeids", true_ids_.size(), n);
    check_length(node, "nodes_falsenodeids", false_ids_.size(), n);
    check_length(node, "nodes_values", values_.size(), n);
    if (!nan_true_.empty()) {
      check_length(node, "nodes_missing_value_tracks_true", nan_true_.size(), n);
    }
  }

  // Fills everything but the leaves' weights; returns each node's leaf, or -1 for a branch.
  void number(Ensemble& ensemble) {
    index_.reserve(ids_.size());
    refs_.resize(ids_.size());
    int32_t branches = 0;
    int32_t leaves = 0;
    int64_t current_tree = 0;
    for (size_t i = 0; i < ids_.size(); ++i) {
      refs_[i] = modes_[i] == "LEAF" ? ~leaves++ : branches++;
      if (!index_.emplace(NodeKey{trees_[i], ids_[i]}, refs_[i]).second) {
        node_.invalid(str("got node ", ids_[i], " of tree ", trees_[i], " twice, expected once"));
      }
      // The first node of a tree is its root; a tree's nodes need not be neighbours.
      if ((i == 0 || trees_[i] != current_tree) && known_trees_.emplace(trees_[i], i).second) {
        ensemble.roots.push_back(refs_[i]);
      }
      current_tree = trees_[i];
    }
    ensemble.leaf_begin.assign(static_cast<size_t>(leaves) + 1, 0);
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (refs_[i] >= 0) ensemble.branches.push_back(branch(i));
    }
  }

  NodeRef find(int64_t tree, int64_t id) const {
    auto it = index_.find({tree, id});
    if (it == index_.end()) {
      node_.invalid(str("node ", id, " of tree ", tree, " is used and does not exist"));
    }
    return it->second;
  }

 private:
  Branch branch(size_t i) const {
    return {.test = test_named(node_, modes_[i]),
            .nan_true = !nan_true_.empty() && nan_true_[i] != 0,
            .feature = checked_feature(node_, features_[i]),
            .value = values_[i],
            .if_true = find(trees_[i], true_ids_[i]),
            .if_false = find(trees_[i], false_ids_[i])};
  }

  const NodeSpec& node_;
  std::vector<int64_t> trees_, ids_, features_, true_ids_, false_ids_, nan_true_;
  std::vector<double> values_;
  std::vector<std::string> modes_;
  std::vector<NodeRef> refs_;
  std::unordered_map<NodeKey, NodeRef, NodeKeyHash> index_;
  std::unordered_map<int64_t, size_t> known_trees_;
};

int32_t checked_target(const NodeSpec& node, int64_t target, int32_t targets) {
  if (target < 0 || target >= targets) {
    node.invalid(str("got a leaf weight for target ", target, ", expected 0 .. ", targets - 1));
  }
  return static_cast<int32_t>(target);
}

// The sets of kMember branches, in the order of the branches, each ended by a NaN.
void read_sets(const NodeSpec& node, Ensemble& ensemble) {
  std::vector<double> members = node.floats("membership_values");
  size_t next = 0;
  for (Branch& branch : ensemble.branches) {
    if (branch.test != BranchTest::kMember) continue;
    branch.set = static_cast<int32_t>(ensemble.sets.size());
    std::vector<double>& set = ensemble.sets.emplace_back();
    while (next < members.size() && !std::isnan(members[next])) set.push_back(members[next++]);
    if (next == members.size()) {
      node.invalid(str("got ", ensemble.sets.size() - 1,
                       " sets in 'membership_values', expected one, ended by NaN, for each "
                       "BRANCH_MEMBER node"));
    }
    ++next;
  }
}

}  // namespace

Ensemble parse_ensemble(const NodeSpec& node, std::string_view prefix, int32_t targets) {
  Ensemble ensemble;
  ensemble.targets = targets;
  NodeTable table(node);
  table.number(ensemble);

  std::string name(prefix);
  std::vector<int64_t> trees = node.ints(name + "_treeids");
  std::vector<int64_t> nodes = node.ints(name + "_nodeids");
  std::vector<int64_t> ids = node.ints(name + "_ids");
  std::vector<double> values = floats_or_tensor(node, name + "_weights");
  check_length(node, name + "_treeids", trees.size(), values.size());
  check_length(node, name + "_nodeids", nodes.size(), values.size());
  check_length(node, name + "_ids", ids.size(), values.size());

  // Counting sort by leaf keeps the order of one leaf's weights. Some converters write weights for
  // branches too; nothing ever ends there.
  std::vector<int32_t> leaf_of(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    leaf_of[i] = ~table.find(trees[i], nodes[i]);
    if (leaf_of[i] >= 0) ++ensemble.leaf_begin[static_cast<size_t>(leaf_of[i]) + 1];
  }
  for (size_t i = 1; i < ensemble.leaf_begin.size(); ++i) {
    ensemble.leaf_begin[i] += ensemble.leaf_begin[i - 1];
  }
  std::vector<int32_t> next(ensemble.leaf_begin.begin(), ensemble.leaf_begin.end() - 1);
  ensemble.weights.resize(static_cast<size_t>(ensemble.leaf_begin.back()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (leaf_of[i] < 0) continue;
    auto slot = static_cast<size_t>(next[static_cast<size_t>(leaf_of[i])]++);
    ensemble.weights[slot] = {checked_target(node, ids[i], targets), values[i]};
  }
  return ensemble;
}

Ensemble parse_ensemble_v5(const NodeSpec& node) {
  Ensemble ensemble;
  ensemble.targets = static_cast<int32_t>(node.int_or("n_targets", 1));
  std::vector<int64_t> features = node.ints("nodes_featureids");
  std::vector<int64_t> modes = node.ints("nodes_modes");
  std::vector<int64_t> true_ids = node.ints("nodes_truenodeids");
  std::vector<int64_t> false_ids = node.ints("nodes_falsenodeids");
  std::vector<int64_t> true_leafs = node.ints("nodes_trueleafs");
  std::vector<int64_t> false_leafs = node.ints("nodes_falseleafs");
  std::vector<int64_t> nan_true = node.ints("nodes_missing_value_tracks_true");
  std::vector<double> splits = node.floats("nodes_splits");
  std::vector<int64_t> leaf_targets = node.ints("leaf_targetids");
  std::vector<double> leaf_weights = node.floats("leaf_weights");
  size_t n = modes.size();
  size_t leaves = leaf_weights.size();
  if (std::max(n, leaves) > kMaxNodes) {
    node.unsupported(str("got ", std::max(n, leaves), " tree nodes, expected at most 2^30"));
  }
  check_length(node, "nodes_featureids", features.size(), n);
  check_length(node, "nodes_truenodeids", true_ids.size(), n);
  check_length(node, "nodes_falsenodeids", false_ids.size(), n);
  check_length(node, "nodes_trueleafs", true_leafs.size(), n);
  check_length(node, "nodes_falseleafs", false_leafs.size(), n);
  check_length(node, "nodes_splits", splits.size(), n);
  check_length(node, "leaf_targetids", leaf_targets.size(), leaves);
  if (!nan_true.empty()) {
    check_length(node, "nodes_missing_value_tracks_true", nan_true.size(), n);
  }

  auto ref = [&](int64_t id, bool leaf) -> NodeRef {
    auto count = static_cast<int64_t>(leaf ? leaves : n);
    if (id < 0 || id >= count) {
      node.invalid(str("got ", leaf ? "leaf " : "node ", id, ", expected 0 .. ", count - 1));
    }
    auto index = static_cast<int32_t>(id);
    return leaf ? ~index : index;
  };
  for (size_t i = 0; i < n; ++i) {
    if (modes[i] < 0 || modes[i] > static_cast<int64_t>(BranchTest::kMember)) {
      node.invalid(str("got mode ", modes[i], " in 'nodes_modes', expected 0 .. 6"));
    }
    ensemble.branches.push_back({.test = static_cast<BranchTest>(modes[i]),
                                 .nan_true = !nan_true.empty() && nan_true[i] != 0,
                                 .feature = checked_feature(node, features[i]),
                                 .value = splits[i],
                                 .if_true = ref(true_ids[i], true_leafs[i] != 0),
                                 .if_false = ref(false_ids[i], false_leafs[i] != 0)});
  }
  read_sets(node, ensemble);
  for (int64_t root : node.ints("tree_roots")) ensemble.roots.push_back(ref(root, false));
  ensemble.leaf_begin.push_back(0);
  for (size_t i = 0; i < leaves; ++i) {
    ensemble.weights.push_back(
        {checked_target(node, leaf_targets[i], ensemble.targets), leaf_weights[i]});
    ensemble.leaf_begin.push_back(static_cast<int32_t>(i) + 1);
  }
  return ensemble;
}

}  // namespace headrace
