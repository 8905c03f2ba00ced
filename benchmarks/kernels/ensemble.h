// A made-up tree ensemble of LightGBM's usual shape, as the node that brings it into the runtime.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "ops/op.h"

namespace headrace {

inline constexpr int kTrees = 300;
inline constexpr int kLeaves = 63;
inline constexpr int kFeatures = 30;
inline constexpr int kBins = 254;

// Splits a random leaf, 62 times a tree, which gives paths as uneven as leaf-wise growth does.
inline NodeSpec make_ensemble(Isa isa, int trees = kTrees) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<int64_t> tree, id, feature, yes, no, w_tree, w_id;
  std::vector<double> value, weight;
  std::vector<std::string> mode;
  for (int t = 0; t < trees; ++t) {
    size_t first = tree.size();
    auto add_leaf = [&] {
      id.push_back(static_cast<int64_t>(tree.size() - first));
      tree.push_back(t);
      feature.push_back(0);
      yes.push_back(0);
      no.push_back(0);
      value.push_back(0);
      mode.push_back("LEAF");
    };
    add_leaf();
    std::vector<size_t> leaves{first};
    for (int s = 1; s < kLeaves; ++s) {
      size_t pick = random() % leaves.size();
      size_t at = leaves[pick];
      mode[at] = "BRANCH_LEQ";
      feature[at] = static_cast<int64_t>(random() % kFeatures);
      value[at] = static_cast<float>(static_cast<double>(random() % kBins) / kBins * 4 - 2);
      leaves[pick] = tree.size();
      leaves.push_back(tree.size() + 1);
      yes[at] = static_cast<int64_t>(tree.size() - first);
      no[at] = yes[at] + 1;
      add_leaf();
      add_leaf();
    }
    for (size_t leaf : leaves) {
      w_tree.push_back(t);
      w_id.push_back(id[leaf]);
      weight.push_back(static_cast<float>(normal(random)));
    }
  }
  NodeSpec spec;
  spec.op = "ai.onnx.ml.TreeEnsembleRegressor";
  spec.name = "bench";
  spec.opset = 3;
  spec.isa = isa;
  spec.input_dtypes = {DType::kF32};
  spec.output_dtypes = {DType::kF32};
  spec.attributes = {{"nodes_treeids", tree},
                     {"nodes_nodeids", id},
                     {"nodes_featureids", feature},
                     {"nodes_values", value},
                     {"nodes_modes", mode},
                     {"nodes_truenodeids", yes},
                     {"nodes_falsenodeids", no},
                     {"target_treeids", w_tree},
                     {"target_nodeids", w_id},
                     {"target_weights", weight},
                     {"target_ids", std::vector<int64_t>(weight.size(), 0)}};
  return spec;
}

}  // namespace headrace
