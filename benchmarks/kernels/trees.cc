// headrace_bench_trees: how fast rows go through a tree ensemble of LightGBM's usual shape (300
// trees of 63 leaves, grown leaf by leaf, 255 bins, 30 features).
//
// Usage: headrace_bench_trees [isa] [threads]
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/op.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTrees = 300;
constexpr int kLeaves = 63;
constexpr int kFeatures = 30;
constexpr int kBins = 254;

// Splits a random leaf, 62 times a tree, which gives paths as uneven as leaf-wise growth does.
NodeSpec make_ensemble(Isa isa) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<int64_t> tree, id, feature, yes, no, w_tree, w_id;
  std::vector<double> value, weight;
  std::vector<std::string> mode;
  for (int t = 0; t < kTrees; ++t) {
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

// Least microseconds of one run over `rows` rows, among at least 0.3 s of them.
double best_us(const Op& op, int64_t rows, ThreadPool& pool) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * kFeatures));
  for (float& v : x) v = normal(random);
  std::vector<float> y(static_cast<size_t>(rows));
  Shape in_shape{rows, kFeatures}, out_shape{rows, 1};
  int64_t in_offsets[] = {0, rows * kFeatures}, out_offsets[] = {0, rows};
  Segments in{
      DType::kF32, reinterpret_cast<std::byte*>(x.data()), {&in_shape, 1}, in_offsets, false};
  Segments out{
      DType::kF32, reinterpret_cast<std::byte*>(y.data()), {&out_shape, 1}, out_offsets, false};
  Arena arena;
  double best = 1e30;
  auto end = Clock::now() + std::chrono::milliseconds(300);
  while (Clock::now() < end) {
    auto start = Clock::now();
    OpRun run(1, {&in, 1}, {&out, 1}, pool, pool.threads(), arena);
    op.run(run);
    run.release_scratch();
    best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  return best;
}

int run(int argc, char** argv) {
  Isa isa = selected_isa();
  for (Isa available : available_isas()) {
    if (argc > 1 && name_of(available) == argv[1]) isa = available;
  }
  ThreadPool pool(argc > 2 ? std::atoi(argv[2]) : 1);
  auto op = OpRegistry::global().make(make_ensemble(isa));
  std::printf("%d trees x %d leaves, %d features, %s, %d threads, %lld bytes\n", kTrees, kLeaves,
              kFeatures, std::string(name_of(isa)).c_str(), pool.threads(),
              static_cast<long long>(op->packed_bytes()));
  for (int64_t rows : {1, 2, 4, 8, 32, 64, 1000, 10000}) {
    double us = best_us(*op, rows, pool);
    std::printf("%6lld rows %10.2f us %8.3f us/row\n", static_cast<long long>(rows), us,
                us / static_cast<double>(rows));
  }
  return 0;
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  return headrace::run(argc, argv);
}
