// From a stated Ensemble to a Forest of integer codes.
#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "core/error.h"
#include "ops/trees/forest.h"
#include "ops/trees/lockstep.h"
#include "ops/trees/question.h"

namespace headrace {
namespace {

template <class T>
class Compiler {
 public:
  Compiler(const NodeSpec& node, const Ensemble& ensemble, std::vector<T>& keys, Forest& forest)
      : node_(node),
        ensemble_(ensemble),
        keys_(keys),
        forest_(forest),
        lockstep_(node.isa, forest) {}

  void compile() {
    forest_.targets = ensemble_.targets;
    for (const Branch& branch : ensemble_.branches) {
      questions_.push_back(question_of<T>(branch, ensemble_));
      forest_.feature_end = std::max(forest_.feature_end, branch.feature + 1);
    }
    number_columns();
    visited_.assign(ensemble_.branches.size(), -1);
    leaf_numbers_.resize(static_cast<size_t>(ensemble_.leaves()));
    for (size_t t = 0; t < ensemble_.roots.size(); ++t) add_tree(static_cast<int32_t>(t));
    lockstep_.finish();
  }

 private:
  // Where a branch finds its answer: codes[column] <= threshold.
  struct Answer {
    uint32_t column = 0;
    uint32_t threshold = 0;
  };

  SortedKeys add_keys(std::vector<T> sorted);
  void number_columns();
  void number_ranks(FeatureCodes& codes, const std::vector<int32_t>& branches);
  void number_sets(FeatureCodes& codes, const std::vector<int32_t>& branches);
  void add_tree(int32_t index);
  void add_nodes(int32_t tree_index, Tree& tree);
  void add_weights(Tree& tree);
  void append_node(uint32_t child, uint32_t column, uint32_t threshold, uint32_t leaf);
  void set_node(int64_t at, uint32_t child, Answer answer);

  NodeRef child(int32_t branch, bool answer) const {
    const Branch& b = ensemble_.branches[static_cast<size_t>(branch)];
    return answer != questions_[static_cast<size_t>(branch)].swapped ? b.if_true : b.if_false;
  }

  const NodeSpec& node_;
  const Ensemble& ensemble_;
  std::vector<T>& keys_;
  Forest& forest_;
  std::vector<Question<T>> questions_;  // per branch
  std::vector<Answer> answers_;         // per branch
  std::vector<int32_t> visited_;        // per branch: the last tree that has it
  LockstepBuilder lockstep_;
  struct LeafNumber {
    int32_t tree = -1;
    int32_t number = 0;
  };
  std::vector<LeafNumber> leaf_numbers_;  // per leaf
  // Of the tree being added: its leaves by number, and its branches.
  std::vector<int32_t> tree_leaves_;
  std::vector<PlacedBranch> tree_branches_;
};

template <class T>
SortedKeys Compiler<T>::add_keys(std::vector<T> sorted) {
  constexpr size_t kFanout = SortedKeys::kFanout;
  std::vector<std::vector<T>> levels;  // the keys first
  do {
    sorted.resize((sorted.size() / kFanout + 1) * kFanout, std::numeric_limits<T>::infinity());
    levels.push_back(sorted);
    std::vector<T> above;
    for (size_t i = kFanout - 1; i + kFanout < sorted.size(); i += kFanout) {
      above.push_back(sorted[i]);
    }
    sorted = std::move(above);
  } while (!sorted.empty());
  SortedKeys keys;
  for (; !levels.empty(); levels.pop_back()) {
    keys.level[keys.levels++] = static_cast<int32_t>(keys_.size());
    keys_.insert(keys_.end(), levels.back().begin(), levels.back().end());
  }
  return keys;
}

template <class T>
void Compiler<T>::number_ranks(FeatureCodes& codes, const std::vector<int32_t>& branches) {
  std::vector<T> sorted;
  bool nan_answers[2] = {false, false};
  for (int32_t b : branches) {
    const Question<T>& q = questions_[static_cast<size_t>(b)];
    if (q.is_set) continue;
    sorted.push_back(q.threshold);
    nan_answers[q.nan_true] = true;
  }
  std::ranges::sort(sorted);
  sorted.erase(std::ranges::unique(sorted).begin(), sorted.end());
  if (nan_answers[false]) codes.rank_nan_false = forest_.columns++;
  if (nan_answers[true]) codes.rank_nan_true = forest_.columns++;
  if (sorted.size() > 255) forest_.code_bits = std::max(forest_.code_bits, 16);
  if (sorted.size() > 65535) forest_.code_bits = 32;
  for (int32_t b : branches) {
    const Question<T>& q = questions_[static_cast<size_t>(b)];
    if (q.is_set) continue;
    auto rank = std::ranges::lower_bound(sorted, q.threshold) - sorted.begin();
    int32_t column = q.nan_true ? codes.rank_nan_true : codes.rank_nan_false;
    answers_[static_cast<size_t>(b)] = {static_cast<uint32_t>(column), static_cast<uint32_t>(rank)};
  }
  forest_.thresholds.push_back(add_keys(std::move(sorted)));
}

template <class T>
void Compiler<T>::number_sets(FeatureCodes& codes, const std::vector<int32_t>& branches) {
  std::map<std::pair<std::vector<T>, bool>, std::vector<int32_t>> sets;
  std::vector<T> sorted;
  for (int32_t b : branches) {
    const Question<T>& q = questions_[static_cast<size_t>(b)];
    if (!q.is_set) continue;
    sets[{q.members, q.nan_true}].push_back(b);
    sorted.insert(sorted.end(), q.members.begin(), q.members.end());
  }
  std::ranges::sort(sorted);
  sorted.erase(std::ranges::unique(sorted).begin(), sorted.end());
  auto position = [&](T member) {
    return static_cast<size_t>(std::ranges::lower_bound(sorted, member) - sorted.begin());
  };
  auto nan_number = sorted.size() + 2;
  codes.category_nan = static_cast<int32_t>(nan_number);
  codes.sets_begin = static_cast<int32_t>(forest_.sets.size());
  for (const auto& [set, asking] : sets) {
    auto first = forest_.set_bits.size();
    forest_.set_bits.resize(first + nan_number / 64 + 1, 0);
    auto add = [&](size_t n) { forest_.set_bits[first + n / 64] |= uint64_t{1} << (n % 64); };
    for (T member : set.first) add(position(member) + 1);
    if (set.second) add(nan_number);
    for (int32_t b : asking) {
      answers_[static_cast<size_t>(b)] = {static_cast<uint32_t>(forest_.columns), 0};
    }
    forest_.sets.push_back({.column = forest_.columns++, .bits = static_cast<int32_t>(first)});
  }
  codes.sets_end = static_cast<int32_t>(forest_.sets.size());
  forest_.categories.push_back(add_keys(std::move(sorted)));
}

template <class T>
void Compiler<T>::number_columns() {
  std::map<int32_t, std::vector<int32_t>> by_feature;
  for (size_t b = 0; b < questions_.size(); ++b) {
    by_feature[ensemble_.branches[b].feature].push_back(static_cast<int32_t>(b));
  }
  answers_.resize(questions_.size());
  for (const auto& [feature, branches] : by_feature) {
    FeatureCodes codes{.feature = feature};
    number_ranks(codes, branches);
    number_sets(codes, branches);
    forest_.features.push_back(codes);
  }
  forest_.columns = std::max(forest_.columns, 1);  // leaves look at column 0
  if (forest_.columns > 65535) forest_.code_bits = 32;
}

template <class T>
void Compiler<T>::append_node(uint32_t child, uint32_t column, uint32_t threshold, uint32_t leaf) {
  if (forest_.code_bits == 32) {
    forest_.wide_nodes.push_back({child, column, threshold});
  } else {
    forest_.nodes.push_back(
        {child, static_cast<uint16_t>(column), static_cast<uint16_t>(threshold)});
  }
  forest_.node_place.push_back(leaf);
}

template <class T>
void Compiler<T>::set_node(int64_t at, uint32_t child, Answer answer) {
  auto i = static_cast<size_t>(at);
  if (forest_.code_bits == 32) {
    forest_.wide_nodes[i] = {child, answer.column, answer.threshold};
  } else {
    forest_.nodes[i] = {child, static_cast<uint16_t>(answer.column),
                        static_cast<uint16_t>(answer.threshold)};
  }
}

// Lays the tree out level by level, siblings side by side, which is also the order to walk it in.
template <class T>
void Compiler<T>::add_nodes(int32_t tree_index, Tree& tree) {
  struct Pending {
    NodeRef ref;
    int32_t depth;
    int32_t parent;  // place in tree_branches_, or -1
    int side;
  };
  std::vector<Pending> queue{{ensemble_.roots[static_cast<size_t>(tree_index)], 0, -1, 0}};
  tree_leaves_.clear();
  tree_branches_.clear();
  tree.nodes_begin = static_cast<int64_t>(forest_.node_place.size());
  append_node(0, 0, 0, 0);
  int64_t depth_sum = 0;
  int64_t leaf_visits = 0;
  for (size_t i = 0; i < queue.size(); ++i) {
    Pending at = queue[i];
    int64_t place = tree.nodes_begin + static_cast<int64_t>(i);
    int32_t number;
    if (at.ref < 0) {
      LeafNumber& leaf = leaf_numbers_[static_cast<size_t>(~at.ref)];
      if (leaf.tree != tree_index) {
        leaf = {tree_index, static_cast<int32_t>(tree_leaves_.size())};
        tree_leaves_.push_back(~at.ref);
      }
      number = ~leaf.number;
      set_node(place, static_cast<uint32_t>(place), {0, std::numeric_limits<uint32_t>::max()});
      forest_.node_place[static_cast<size_t>(place)] = static_cast<uint32_t>(leaf.number);
      tree.depth = std::max(tree.depth, at.depth);
      depth_sum += at.depth;
      ++leaf_visits;
    } else {
      auto branch = static_cast<size_t>(at.ref);
      if (visited_[branch] == tree_index) {
        node_.invalid(str("tree ", tree_index, " reaches a branch on feature ",
                          ensemble_.branches[branch].feature, " twice, expected a tree"));
      }
      visited_[branch] = tree_index;
      number = static_cast<int32_t>(tree_branches_.size());
      tree_branches_.push_back({answers_[branch].column, answers_[branch].threshold, {0, 0}});
      auto child_place = static_cast<uint32_t>(forest_.node_place.size());
      set_node(place, child_place, answers_[branch]);
      for (bool yes : {true, false}) {
        queue.push_back({child(at.ref, yes), at.depth + 1, number, yes ? 1 : 0});
        append_node(0, 0, 0, 0);
      }
    }
    if (at.parent >= 0) tree_branches_[static_cast<size_t>(at.parent)].child[at.side] = number;
  }
  if (forest_.node_place.size() > std::numeric_limits<uint32_t>::max()) {
    node_.unsupported("got more than 2^32 tree nodes, expected fewer");
  }
  tree.leaves = static_cast<int32_t>(tree_leaves_.size());
  tree.mean_depth = static_cast<double>(depth_sum) / static_cast<double>(leaf_visits);
}

template <class T>
void Compiler<T>::add_weights(Tree& tree) {
  auto begin_of = [&](int32_t leaf) { return ensemble_.leaf_begin[static_cast<size_t>(leaf)]; };
  tree.single = true;
  tree.target = -1;
  for (int32_t leaf : tree_leaves_) {
    if (begin_of(leaf + 1) - begin_of(leaf) != 1) {
      tree.single = false;
      break;
    }
    int32_t target = ensemble_.weights[static_cast<size_t>(begin_of(leaf))].target;
    if (tree.target < 0) tree.target = target;
    tree.single = tree.single && tree.target == target;
  }
  if (tree.single) {
    tree.places_begin = static_cast<int64_t>(forest_.weights.size());
    for (int32_t leaf : tree_leaves_) {
      forest_.weights.push_back(ensemble_.weights[static_cast<size_t>(begin_of(leaf))].value);
    }
    return;
  }
  tree.places_begin = static_cast<int64_t>(forest_.leaf_begin.size());
  for (int32_t leaf : tree_leaves_) {
    forest_.leaf_begin.push_back(static_cast<int32_t>(forest_.leaf_weights.size()));
    forest_.leaf_weights.insert(forest_.leaf_weights.end(),
                                ensemble_.weights.begin() + begin_of(leaf),
                                ensemble_.weights.begin() + begin_of(leaf + 1));
  }
  forest_.leaf_begin.push_back(static_cast<int32_t>(forest_.leaf_weights.size()));
}

template <class T>
void Compiler<T>::add_tree(int32_t index) {
  Tree tree{};
  add_nodes(index, tree);
  add_weights(tree);
  forest_.trees.push_back(tree);
  lockstep_.add(tree_branches_);
  forest_.roots.push_back(static_cast<uint32_t>(tree.nodes_begin));
  for (auto n = static_cast<size_t>(tree.nodes_begin); n < forest_.node_place.size(); ++n) {
    forest_.node_place[n] += static_cast<uint32_t>(tree.places_begin);
  }
  bool shared = tree.single && (index == 0 || forest_.one_target == tree.target);
  forest_.one_target = shared ? tree.target : -1;
}

}  // namespace

int64_t Forest::bytes() const {
  auto of = [](const auto& v) { return static_cast<int64_t>(v.size() * sizeof(v[0])); };
  return of(features) + of(thresholds) + of(categories) + of(sets) + of(set_bits) + of(keys_f32) +
         of(keys_f64) + of(trees) + of(groups) + of(spans) + of(steps) + of(nodes) +
         of(wide_nodes) + of(roots) + of(node_place) + of(weights) + of(leaf_begin) +
         of(leaf_weights);
}

Forest compile_forest(const NodeSpec& node, const Ensemble& ensemble, bool wide) {
  Forest forest;
  if (wide) {
    Compiler<double>(node, ensemble, forest.keys_f64, forest).compile();
  } else {
    Compiler<float>(node, ensemble, forest.keys_f32, forest).compile();
  }
  return forest;
}

}  // namespace headrace
