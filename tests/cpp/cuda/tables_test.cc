// Ops that move elements, reductions and tree ensembles.
#include "op_case.h"

namespace headrace::cuda::test {
namespace {

using Ints = std::vector<int64_t>;
using Floats = std::vector<double>;

HR_TEST(cuda_elements_are_read_in_the_cpus_order) {
  Tensors x = randoms({{2, 3, 4}, {1, 5, 4}});
  check_on_host({node_of("Transpose", 13, {{"perm", Ints{2, 0, 1}}}), {per_request(x)}, 0});
  check_on_host({node_of("Slice", 13),
                 {per_request(x), constant(ints({2}, {-1, 1})), constant(ints({2}, {-9, 4})),
                  constant(ints({2}, {1, 2})), constant(ints({2}, {-1, 2}))},
                 0});
  check_on_host({node_of("Tile", 13), {per_request(x), constant(ints({3}, {2, 1, 3}))}, 0});
  // The target shape is an input of the Model: the host knows it.
  check_on_host({node_of("Expand", 13),
                 {per_request(randoms({{3, 1}, {1, 1}})),
                  per_request({ints({2}, {3, 4}), ints({2}, {5, 2})})},
                 0});
  Tensors numbers = {ints({2, 3}, {1, 2, 3, 4, 5, 6})};
  check_on_host({node_of("Transpose", 13, {}, {DType::kI64}), {per_request(numbers)}, 0});
}

HR_TEST(cuda_concat_and_split_are_the_cpus) {
  check_on_host({node_of("Concat", 13, {{"axis", int64_t{1}}}),
                 {per_request(randoms({{1, 3, 4}, {1, 1, 4}})), constant(random({1, 2, 4}, 1)),
                  per_request(randoms({{1, 1, 4}, {1, 5, 4}}, 30))},
                 0});
}

HR_TEST(cuda_split_gives_every_part) {
  check_on_host({node_of("Split", 13, {{"axis", int64_t{-1}}}, {DType::kF32, DType::kF32}),
                 {per_request(randoms({{2, 3, 6}, {1, 1, 6}})), constant(ints({2}, {2, 4}))},
                 0});
}

HR_TEST(cuda_gather_takes_rows_of_a_table_and_of_results) {
  Tensors indices = {ints({2, 2}, {0, -1, 3, 1}), ints({1}, {2})};
  check_on_host({node_of("Gather", 13), {constant(random({4, 6}, 1)), per_request(indices)}, 0});
  check_on_host({node_of("Gather", 13, {{"axis", int64_t{1}}}),
                 {per_request(randoms({{3, 4, 2}, {1, 5, 2}})), per_request(indices)},
                 0});
}

HR_TEST(cuda_reductions_are_the_cpus) {
  std::vector<Shape> shapes = {{2, 5, 40}, {1, 9, 3}};
  for (const char* op : {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1",
                         "ReduceL2", "ReduceSumSquare"}) {
    for (const Ints& axes : {Ints{1}, Ints{-1}, Ints{0, 2}, Ints{0, 1, 2}}) {
      Tensor axis = Tensor::of<int64_t>({static_cast<int64_t>(axes.size())}, axes);
      check_on_host({node_of(op, 18, {{"keepdims", int64_t{0}}}),
                     {per_request(randoms(shapes)), constant(axis)}});
    }
  }
}

// Two trees over three features, with several weights to a leaf, missing values both ways.
Attributes trees(const std::string& prefix) {
  return {{"nodes_treeids", Ints{0, 0, 0, 0, 0, 1, 1, 1}},
          {"nodes_nodeids", Ints{0, 1, 2, 3, 4, 0, 1, 2}},
          {"nodes_featureids", Ints{0, 1, 0, 0, 0, 2, 0, 0}},
          {"nodes_truenodeids", Ints{1, 2, 0, 0, 0, 1, 0, 0}},
          {"nodes_falsenodeids", Ints{4, 3, 0, 0, 0, 2, 0, 0}},
          {"nodes_missing_value_tracks_true", Ints{1, 0, 0, 0, 0, 1, 0, 0}},
          {"nodes_values", Floats{0.25, -0.5, 0, 0, 0, 0.0, 0, 0}},
          {"nodes_modes", std::vector<std::string>{"BRANCH_LEQ", "BRANCH_LT", "LEAF", "LEAF",
                                                   "LEAF", "BRANCH_GT", "LEAF", "LEAF"}},
          {prefix + "_treeids", Ints{0, 0, 0, 0, 1, 1}},
          {prefix + "_nodeids", Ints{2, 3, 3, 4, 1, 2}},
          {prefix + "_ids", Ints{0, 1, 0, 2, 2, 1}},
          {prefix + "_weights", Floats{1.5, -2.0, 0.25, 3.0, 0.5, -0.125}}};
}

Tensors feature_tables() {
  Tensors tables = randoms({{200, 3}, {1, 3}, {7, 4}});
  std::vector<float> values = tables[0].values<float>();
  for (size_t i = 0; i < values.size(); i += 5) values[i] = __builtin_nanf("");
  tables[0] = Tensor::of({200, 3}, values);
  return tables;
}

HR_TEST(cuda_tree_regressors_are_the_cpus) {
  for (const char* aggregate : {"SUM", "AVERAGE"}) {
    Attributes attributes = trees("target");
    attributes["n_targets"] = int64_t{3};
    attributes["aggregate_function"] = std::string(aggregate);
    attributes["base_values"] = Floats{0.5, 0.0, -1.0};
    check_on_host({node_of("ai.onnx.ml.TreeEnsembleRegressor", 3, attributes),
                   {per_request(feature_tables())},
                   1e-6});
  }
}

HR_TEST(cuda_tree_classifiers_are_the_cpus) {
  for (const char* transform : {"NONE", "SOFTMAX", "LOGISTIC"}) {
    Attributes attributes = trees("class");
    attributes["classlabels_int64s"] = Ints{7, 5, 9};
    attributes["post_transform"] = std::string(transform);
    NodeSpec node =
        node_of("ai.onnx.ml.TreeEnsembleClassifier", 3, attributes, {DType::kI64, DType::kF32});
    check_on_host({node, {per_request(feature_tables())}, 1e-6});
    // Two classes, of which only one has weights.
    node.attributes["classlabels_int64s"] = Ints{7, 5};
    node.attributes["class_ids"] = Ints{0, 0, 0, 0, 0, 0};
    check_on_host({node, {per_request(feature_tables())}, 1e-6});
  }
}

// Complete trees of random questions: chunk follows chunk, and one tree is larger than what fits in
// shared memory.
HR_TEST(cuda_forests_go_through_shared_memory_in_chunks) {
  Attributes a;
  Ints trees, nodes, features, yes, no, target_trees, target_nodes, targets;
  Floats values, weights;
  std::vector<std::string> modes;
  std::mt19937 rng(5);
  for (int tree = 0; tree < 28; ++tree) {
    int depth = tree == 26 ? 11 : 7;
    int branches = (1 << depth) - 1;
    for (int i = 0; i < 2 * branches + 1; ++i) {
      bool leaf = i >= branches;
      trees.push_back(tree);
      nodes.push_back(i);
      features.push_back(leaf ? 0 : static_cast<int64_t>(rng() % 5));
      yes.push_back(leaf ? 0 : 2 * i + 1);
      no.push_back(leaf ? 0 : 2 * i + 2);
      values.push_back(leaf ? 0 : static_cast<float>(rng() % 1000) / 500.0f - 1.0f);
      modes.push_back(leaf ? "LEAF" : "BRANCH_LEQ");
      if (!leaf) continue;
      target_trees.push_back(tree);
      target_nodes.push_back(i);
      targets.push_back(0);
      weights.push_back(static_cast<float>(rng() % 1000) / 1000.0f);
    }
  }
  a = {{"nodes_treeids", trees},         {"nodes_nodeids", nodes},
       {"nodes_featureids", features},   {"nodes_truenodeids", yes},
       {"nodes_falsenodeids", no},       {"nodes_values", values},
       {"nodes_modes", modes},           {"target_treeids", target_trees},
       {"target_nodeids", target_nodes}, {"target_ids", targets},
       {"target_weights", weights},      {"n_targets", int64_t{1}}};
  check_on_host({node_of("ai.onnx.ml.TreeEnsembleRegressor", 3, a),
                 {per_request(randoms({{150, 5}, {3, 5}}))},
                 1e-6});
}

}  // namespace
}  // namespace headrace::cuda::test
