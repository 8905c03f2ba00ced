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
#include "ensemble.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

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
