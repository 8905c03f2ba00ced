#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "core/error.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::run_one;
using test::run_op;
using test::Tensor;
using test::Tensors;

using Ints = std::vector<int64_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Random trees, with the plainest possible evaluation to compare with.
struct RandomTrees {
  struct Node {
    std::string mode = "LEAF";
    int64_t tree = 0, id = 0, feature = 0, yes = 0, no = 0, nan_true = 0;
    double value = 0;
    std::vector<std::pair<int64_t, double>> weights;  // target, weight
  };
  struct Options {
    int trees = 5;
    int leaves = 30;  // at most
    int features = 6;
    int values = 20;  // distinct thresholds per feature
    int64_t targets = 1;
    bool several_weights = false;
    std::vector<std::string> modes = {"BRANCH_LEQ"};
    uint32_t seed = 1;
  };

  Options options;
  std::vector<std::vector<Node>> trees;

  explicit RandomTrees(Options o) : options(o) {
    std::mt19937 random(o.seed);
    auto below = [&](int64_t n) {
      return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
    };
    std::normal_distribution<double> normal;
    for (int t = 0; t < o.trees; ++t) {
      std::vector<Node>& nodes = trees.emplace_back(1);
      nodes[0].tree = t;
      int64_t splits = below(o.leaves);
      for (int64_t s = 0; s < splits; ++s) {
        size_t at = 0;
        do {
          at = static_cast<size_t>(below(static_cast<int64_t>(nodes.size())));
        } while (nodes[at].mode != "LEAF");
        Node& node = nodes[at];
        node.mode = o.modes[static_cast<size_t>(below(static_cast<int64_t>(o.modes.size())))];
        node.feature = below(o.features);
        node.value = static_cast<float>(below(o.values)) * 0.37f - 2.0f;
        node.nan_true = below(2);
        node.yes = static_cast<int64_t>(nodes.size());
        node.no = node.yes + 1;
        for (int64_t id : {node.yes, node.no}) {
          Node leaf;
          leaf.tree = t;
          leaf.id = id;
          nodes.push_back(leaf);
        }
      }
      for (Node& node : nodes) {
        if (node.mode != "LEAF") continue;
        for (int64_t k = 0; k < (o.several_weights ? o.targets : 1); ++k) {
          double weight = static_cast<float>(normal(random));
          node.weights.emplace_back(o.several_weights ? k : t % o.targets, weight);
        }
      }
    }
  }

  NodeSpec spec(std::string op, const std::string& prefix) const {
    std::vector<int64_t> tree, id, feature, yes, no, nan_true, w_tree, w_id, w_target;
    std::vector<double> value, weight;
    std::vector<std::string> mode;
    for (const auto& nodes : trees) {
      for (const Node& node : nodes) {
        tree.push_back(node.tree);
        id.push_back(node.id);
        feature.push_back(node.feature);
        yes.push_back(node.yes);
        no.push_back(node.no);
        nan_true.push_back(node.nan_true);
        value.push_back(node.value);
        mode.push_back(node.mode);
        for (auto [target, w] : node.weights) {
          w_tree.push_back(node.tree);
          w_id.push_back(node.id);
          w_target.push_back(target);
          weight.push_back(w);
        }
      }
    }
    NodeSpec spec;
    spec.op = "ai.onnx.ml." + std::move(op);
    spec.name = "trees";
    spec.opset = 3;
    spec.input_dtypes = {DType::kF32};
    spec.output_dtypes = {DType::kF32};
    spec.attributes = {{"nodes_treeids", tree},       {"nodes_nodeids", id},
                       {"nodes_featureids", feature}, {"nodes_values", value},
                       {"nodes_modes", mode},         {"nodes_truenodeids", yes},
                       {"nodes_falsenodeids", no},    {"nodes_missing_value_tracks_true", nan_true},
                       {prefix + "_treeids", w_tree}, {prefix + "_nodeids", w_id},
                       {prefix + "_ids", w_target},   {prefix + "_weights", weight}};
    return spec;
  }

  static bool answer(const Node& node, double x) {
    if (std::isnan(x)) return node.mode == "BRANCH_NEQ" || node.nan_true != 0;
    if (node.mode == "BRANCH_LEQ") return x <= node.value;
    if (node.mode == "BRANCH_LT") return x < node.value;
    if (node.mode == "BRANCH_GTE") return x >= node.value;
    if (node.mode == "BRANCH_GT") return x > node.value;
    if (node.mode == "BRANCH_EQ") return x == node.value;
    return x != node.value;
  }

  const Node& leaf(size_t tree, const double* row) const {
    const Node* node = &trees[tree][0];
    while (node->mode != "LEAF") {
      node = &trees[tree]
                   [static_cast<size_t>(answer(*node, row[node->feature]) ? node->yes : node->no)];
    }
    return *node;
  }

  // Sums per row and target, in double.
  template <class T>
  std::vector<double> sums(const std::vector<T>& x, int64_t rows) const {
    std::vector<double> out(static_cast<size_t>(rows * options.targets), 0.0);
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<double> row(x.begin() + r * options.features,
                              x.begin() + (r + 1) * options.features);
      for (size_t t = 0; t < trees.size(); ++t) {
        for (auto [target, w] : leaf(t, row.data()).weights) {
          out[static_cast<size_t>(r * options.targets + target)] += w;
        }
      }
    }
    return out;
  }
};

// Values on, next to and between thresholds, NaN and infinities.
std::vector<float> random_rows(int64_t rows, int features, uint32_t seed, bool odd = true) {
  std::mt19937 random(seed);
  std::vector<float> x;
  for (int64_t i = 0; i < rows * features; ++i) {
    float value = static_cast<float>(random() % 24) * 0.37f - 2.4f;
    switch (random() % 8) {
      case 0:
        value = std::nextafter(value, kInf);
        break;
      case 1:
        value = std::nextafter(value, -kInf);
        break;
      case 2:
        if (odd) value = kNan;
        break;
      case 3:
        if (odd) value = random() % 2 ? kInf : -kInf;
        break;
      default:
        break;
    }
    x.push_back(value);
  }
  return x;
}

const std::vector<std::string> kAllModes = {"BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE",
                                            "BRANCH_GT",  "BRANCH_EQ", "BRANCH_NEQ"};

std::unique_ptr<Op> make(NodeSpec spec, Isa isa) {
  spec.isa = isa;
  return OpRegistry::global().make(spec);
}

void check_regressor(const RandomTrees::Options& options) {
  RandomTrees trees(options);
  for (Isa isa : available_isas()) {
    NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
    spec.attributes["n_targets"] = options.targets;
    auto op = make(spec, isa);
    for (int64_t rows : {0, 1, 3, 63, 64, 65, 200}) {
      std::vector<float> x = random_rows(rows, options.features, options.seed + 7);
      Tensors got = run_one(*op, {DType::kF32}, {Tensor::of({rows, options.features}, x)}, 2);
      std::vector<double> expected = trees.sums(x, rows);
      std::vector<float> values = got[0].values<float>();
      HR_CHECK_EQ(values.size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        HR_CHECK_EQ(values[i], static_cast<float>(expected[i]));
      }
    }
  }
}

HR_TEST(trees_match_plain_evaluation_to_the_bit) {
  check_regressor({.trees = 40, .leaves = 63});
}

HR_TEST(trees_of_every_mode_send_nan_and_ties_the_right_way) {
  for (uint32_t seed = 1; seed < 6; ++seed)
    check_regressor({.trees = 20, .modes = kAllModes, .seed = seed});
}

HR_TEST(trees_with_16_bit_codes) {
  check_regressor({.trees = 60, .leaves = 60, .features = 2, .values = 2000, .modes = kAllModes});
  check_regressor({.trees = 6, .leaves = 900, .features = 2, .values = 5000});
}

HR_TEST(trees_with_32_bit_codes) {
  check_regressor({.trees = 8, .leaves = 90000, .features = 1, .values = 1 << 22});
}

HR_TEST(trees_of_one_leaf) {
  check_regressor({.trees = 3, .leaves = 1});
}

HR_TEST(trees_with_many_leaves_and_8_bit_codes) {
  check_regressor({.trees = 10, .leaves = 256});
  check_regressor({.trees = 10, .leaves = 600});
}

HR_TEST(trees_with_several_targets) {
  check_regressor({.trees = 21, .targets = 3});
  check_regressor({.trees = 21, .targets = 4, .several_weights = true});
}

HR_TEST(trees_give_a_row_the_same_bits_in_any_company) {
  RandomTrees trees({.trees = 50, .leaves = 63, .modes = kAllModes});
  NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
  for (Isa isa : available_isas()) {
    auto op = make(spec, isa);
    std::vector<Tensors> requests;
    for (int64_t rows : {1, 70, 0, 5, 129, 2}) {
      requests.push_back(
          {Tensor::of({rows, 6}, random_rows(rows, 6, 3 + static_cast<uint32_t>(rows)))});
    }
    for (int threads : {1, 3}) {
      auto together = run_op(*op, {DType::kF32}, requests, threads);
      for (size_t r = 0; r < requests.size(); ++r) {
        HR_CHECK(together[r][0].bytes == run_one(*op, {DType::kF32}, requests[r])[0].bytes);
      }
    }
  }
}

HR_TEST(trees_take_requests_with_different_numbers_of_features) {
  RandomTrees trees({.trees = 9});
  auto op = make(trees.spec("TreeEnsembleRegressor", "target"), available_isas().back());
  std::vector<float> x = random_rows(10, 6, 5);
  std::vector<float> wide;
  for (int r = 0; r < 10; ++r) {
    for (int f = 0; f < 9; ++f) wide.push_back(f < 6 ? x[static_cast<size_t>(r * 6 + f)] : 1e9f);
  }
  auto got = run_op(*op, {DType::kF32}, {{Tensor::of({10, 6}, x)}, {Tensor::of({10, 9}, wide)}});
  HR_CHECK(got[0][0].bytes == got[1][0].bytes);
}

HR_TEST(trees_refuse_rows_with_too_few_features) {
  RandomTrees trees({.trees = 30});
  auto op = make(trees.spec("TreeEnsembleRegressor", "target"), available_isas().back());
  HR_CHECK_THROWS(run_one(*op, {DType::kF32}, {Tensor::of({1, 2}, std::vector<float>(2))}), Error);
}

HR_TEST(trees_compare_doubles_as_doubles) {
  RandomTrees trees({.trees = 20, .modes = kAllModes});
  std::vector<double> x;
  for (float value : random_rows(100, 6, 9)) x.push_back(static_cast<double>(value) + 1e-12);
  for (Isa isa : available_isas()) {
    NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
    spec.input_dtypes = {DType::kF64};
    auto op = make(spec, isa);
    std::vector<float> got =
        run_one(*op, {DType::kF32}, {Tensor::of({100, 6}, x)})[0].values<float>();
    std::vector<double> expected = trees.sums(x, 100);
    for (size_t i = 0; i < 100; ++i) {
      HR_CHECK_EQ(got[i], static_cast<float>(expected[i]));
    }
  }
}

HR_TEST(trees_take_integers) {
  RandomTrees trees({.trees = 20, .modes = kAllModes});
  NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
  spec.input_dtypes = {DType::kI64};
  auto op = make(spec, available_isas().back());
  std::vector<int64_t> x;
  for (int64_t i = 0; i < 600; ++i) x.push_back(i * 7 % 11 - 5);
  std::vector<float> got =
      run_one(*op, {DType::kF32}, {Tensor::of({100, 6}, x)})[0].values<float>();
  std::vector<double> expected = trees.sums(x, 100);
  for (size_t i = 0; i < 100; ++i) {
    HR_CHECK_EQ(got[i], static_cast<float>(expected[i]));
  }
}

HR_TEST(trees_aggregate_and_add_base_values) {
  RandomTrees trees({.trees = 12, .targets = 2, .several_weights = true});
  std::vector<float> x = random_rows(70, 6, 11);
  for (std::string aggregate : {"AVERAGE", "MIN", "MAX"}) {
    NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
    spec.attributes["n_targets"] = int64_t{2};
    spec.attributes["aggregate_function"] = aggregate;
    spec.attributes["base_values"] = std::vector<double>{0.5, -1.0};
    auto op = make(spec, available_isas().back());
    std::vector<float> got =
        run_one(*op, {DType::kF32}, {Tensor::of({70, 6}, x)})[0].values<float>();
    for (int64_t r = 0; r < 70; ++r) {
      std::vector<double> row(x.begin() + r * 6, x.begin() + (r + 1) * 6);
      for (int64_t k = 0; k < 2; ++k) {
        std::vector<double> weights;
        for (size_t t = 0; t < 12; ++t) {
          weights.push_back(trees.leaf(t, row.data()).weights[static_cast<size_t>(k)].second);
        }
        double sum = 0;
        for (double w : weights) sum += w;
        double expected = aggregate == "MIN"   ? std::ranges::min(weights)
                          : aggregate == "MAX" ? std::ranges::max(weights)
                                               : sum / 12;
        HR_CHECK_NEAR(got[static_cast<size_t>(r * 2 + k)], expected + (k == 0 ? 0.5 : -1.0), 1e-6);
      }
    }
  }
}

HR_TEST(binary_classifier_with_one_score) {
  RandomTrees trees({.trees = 30});
  std::vector<float> x = random_rows(100, 6, 13);
  std::vector<double> margin = trees.sums(x, 100);
  NodeSpec spec = trees.spec("TreeEnsembleClassifier", "class");
  spec.output_dtypes = {DType::kString, DType::kF32};
  spec.attributes["classlabels_strings"] = std::vector<std::string>{"no", "yes"};
  spec.attributes["post_transform"] = std::string("LOGISTIC");
  spec.attributes["base_values"] = std::vector<double>{0.25};
  auto op = make(spec, available_isas().back());
  Tensors got = run_one(*op, spec.output_dtypes, {Tensor::of({100, 6}, x)});
  auto labels = got[0].values<StringRef>();
  std::vector<float> scores = got[1].values<float>();
  for (size_t i = 0; i < 100; ++i) {
    double p = 1 / (1 + std::exp(-(margin[i] + 0.25)));
    HR_CHECK_EQ(labels[i].view(), p > 0.5 ? "yes" : "no");
    HR_CHECK_NEAR(scores[2 * i], 1 - p, 1e-7);
    HR_CHECK_NEAR(scores[2 * i + 1], p, 1e-7);
  }
}

HR_TEST(classifier_with_a_score_per_class) {
  RandomTrees trees({.trees = 30, .targets = 3});
  std::vector<float> x = random_rows(100, 6, 13);
  std::vector<double> margin = trees.sums(x, 100);
  NodeSpec spec = trees.spec("TreeEnsembleClassifier", "class");
  spec.output_dtypes = {DType::kI64, DType::kF32};
  spec.attributes["classlabels_int64s"] = std::vector<int64_t>{7, 8, 9};
  spec.attributes["post_transform"] = std::string("SOFTMAX");
  auto op = make(spec, available_isas().back());
  Tensors got = run_one(*op, spec.output_dtypes, {Tensor::of({100, 6}, x)});
  auto labels = got[0].values<int64_t>();
  std::vector<float> scores = got[1].values<float>();
  for (size_t i = 0; i < 100; ++i) {
    const double* m = margin.data() + 3 * i;
    double sum = std::exp(m[0]) + std::exp(m[1]) + std::exp(m[2]);
    HR_CHECK_EQ(labels[i], 7 + (std::max_element(m, m + 3) - m));
    for (size_t k = 0; k < 3; ++k) {
      HR_CHECK_NEAR(scores[3 * i + k], std::exp(m[k]) / sum, 1e-6);
    }
  }
}

HR_TEST(tree_ensemble_of_opset_5_with_sets) {
  // x0 in {1, 4} ? leaf 0 : (x1 <= 0.5 ? leaf 1 : x0 in {} ? leaf 0 : leaf 2)
  NodeSpec spec;
  spec.op = "ai.onnx.ml.TreeEnsemble";
  spec.opset = 5;
  spec.input_dtypes = {DType::kF64};
  spec.output_dtypes = {DType::kF64};
  spec.attributes = {{"n_targets", int64_t{1}},
                     {"nodes_featureids", std::vector<int64_t>{0, 1, 0}},
                     {"nodes_modes", std::vector<int64_t>{6, 0, 6}},
                     {"nodes_splits", std::vector<double>{0, 0.5, 0}},
                     {"nodes_truenodeids", std::vector<int64_t>{0, 1, 0}},
                     {"nodes_trueleafs", std::vector<int64_t>{1, 1, 1}},
                     {"nodes_falsenodeids", std::vector<int64_t>{1, 2, 2}},
                     {"nodes_falseleafs", std::vector<int64_t>{0, 0, 1}},
                     {"nodes_missing_value_tracks_true", std::vector<int64_t>{0, 1, 1}},
                     {"membership_values", std::vector<double>{4, 1, kNan, kNan}},
                     {"leaf_targetids", std::vector<int64_t>{0, 0, 0}},
                     {"leaf_weights", std::vector<double>{0.1, 0.2, 0.3}},
                     {"tree_roots", std::vector<int64_t>{0}}};
  std::vector<double> row = {1, 9, 4, kNan, 2, 0.5, 2, 0.6, kNan, 0.6, kNan, kNan};
  std::vector<double> expected = {0.1, 0.1, 0.2, 0.3, 0.1, 0.2};
  std::vector<double> x;  // many rows, as few take another way
  for (int i = 0; i < 30; ++i) x.insert(x.end(), row.begin(), row.end());
  for (Isa isa : available_isas()) {
    auto op = make(spec, isa);
    for (int64_t rows : {6, 180}) {
      Tensor table = Tensor::of({rows, 2}, std::vector<double>(x.begin(), x.begin() + rows * 2));
      std::vector<double> got = run_one(*op, {DType::kF64}, {table})[0].values<double>();
      for (size_t i = 0; i < got.size(); ++i) HR_CHECK_EQ(got[i], expected[i % 6]);
    }
  }
}

HR_TEST(sets_of_many_categories) {
  constexpr int64_t kStumps = 40;
  std::mt19937 random(3);
  NodeSpec spec;
  spec.op = "ai.onnx.ml.TreeEnsemble";
  spec.opset = 5;
  spec.input_dtypes = {DType::kF32};
  spec.output_dtypes = {DType::kF32};
  std::vector<std::vector<float>> sets(kStumps);
  std::vector<double> members;
  std::vector<int64_t> nan_true, roots, yes, no;
  for (int64_t t = 0; t < kStumps; ++t) {
    std::vector<float>& set = sets[static_cast<size_t>(t)];
    for (int i = 0; i < 50; ++i) set.push_back(static_cast<float>(random() % 200) - 20);
    if (t % 3 == 0) set.push_back(kInf);
    members.insert(members.end(), set.begin(), set.end());
    members.push_back(kNan);
    nan_true.push_back(t % 2);
    roots.push_back(t);
    yes.push_back(2 * t);
    no.push_back(2 * t + 1);
  }
  std::vector<double> weights;
  for (int64_t t = 0; t < kStumps; ++t) {
    weights.push_back(std::ldexp(1.0, static_cast<int>(t % 20)));  // sums of these are exact
    weights.push_back(0);
  }
  spec.attributes = {{"nodes_featureids", Ints(kStumps, 0)},
                     {"nodes_modes", Ints(kStumps, 6)},
                     {"nodes_splits", std::vector<double>(kStumps, 0.0)},
                     {"nodes_truenodeids", yes},
                     {"nodes_trueleafs", Ints(kStumps, 1)},
                     {"nodes_falsenodeids", no},
                     {"nodes_falseleafs", Ints(kStumps, 1)},
                     {"nodes_missing_value_tracks_true", nan_true},
                     {"membership_values", members},
                     {"leaf_targetids", Ints(2 * kStumps, 0)},
                     {"leaf_weights", weights},
                     {"tree_roots", roots}};
  std::vector<float> x = {kNan, kInf, -kInf, 0.5f, -0.0f, 1e30f};
  while (x.size() < 300) x.push_back(static_cast<float>(random() % 220) - 25);
  for (Isa isa : available_isas()) {
    auto op = make(spec, isa);
    for (int64_t rows : {1, 6, 300}) {
      std::vector<float> part(x.begin(), x.begin() + rows);
      auto got = run_one(*op, {DType::kF32}, {Tensor::of({rows, 1}, part)})[0].values<float>();
      for (size_t r = 0; r < got.size(); ++r) {
        double expected = 0;
        for (size_t t = 0; t < kStumps; ++t) {
          bool in = std::isnan(x[r]) ? t % 2 == 1 : std::ranges::count(sets[t], x[r]) > 0;
          if (in) expected += weights[2 * t];
        }
        HR_CHECK_EQ(got[r], static_cast<float>(expected));
      }
    }
  }
}

HR_TEST(tree_ensembles_that_are_not_trees_are_refused) {
  RandomTrees trees({.trees = 3, .leaves = 20});
  NodeSpec spec = trees.spec("TreeEnsembleRegressor", "target");
  auto yes = std::get<std::vector<int64_t>>(spec.attributes["nodes_truenodeids"]);
  auto modes = std::get<std::vector<std::string>>(spec.attributes["nodes_modes"]);
  for (size_t i = 0; i < yes.size(); ++i) {
    if (modes[i] != "LEAF") yes[i] = 0;  // back to the root
  }
  spec.attributes["nodes_truenodeids"] = yes;
  HR_CHECK_THROWS(make(spec, Isa::kReference), Error);
  spec.attributes["nodes_truenodeids"] = std::vector<int64_t>{1};
  HR_CHECK_THROWS(make(spec, Isa::kReference), Error);
}

}  // namespace
}  // namespace headrace
