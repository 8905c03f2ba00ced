// headrace_bench_invariance: what it costs that no sum is ever split between threads, as JSON.
//
// Usage: headrace_bench_invariance [threads]
//
// The bits of a Result must not depend on the number of threads, so the order of a product's sum
// over k and of the sum over an ensemble's trees follows from the Model alone. Here both are
// divided by the number of threads, by hand: one Plan per thread, results added up afterwards. What
// that is compared with keeps the order: for a product, one Plan per thread with its share of the
// columns; for trees, the Plan a user gets. All run the same kernels on the same workers.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "ensemble.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

constexpr DType kF32 = DType::kF32;
using Clock = std::chrono::steady_clock;

Program one_op(Isa isa, NodeSpec node, const ConstTensorView* weights) {
  node.input_dtypes.clear();  // the builder fills them in
  ProgramBuilder builder(isa);
  std::vector<ValueId> inputs{builder.add_input({.name = "x", .dtype = kF32, .dims = {{}, {}}})};
  if (weights != nullptr) inputs.push_back(builder.add_constant("w", *weights, nullptr));
  ValueId y = builder.add_op(std::move(node), inputs, {"y"})[0];
  builder.add_output({.name = "y", .dtype = kF32, .dims = {{}, {}}}, y);
  return builder.finish();
}

Program linear(Isa isa, int64_t k, int64_t n, const float* weights) {
  NodeSpec node;
  node.op = "headrace.Linear";
  node.output_dtypes = {kF32};
  ConstTensorView w{kF32, {k, n}, weights};
  return one_op(isa, std::move(node), &w);
}

// A Plan with the input it is called with.
struct Part {
  std::unique_ptr<Plan> plan;
  std::vector<float> x;
  ConstTensorView input;

  Part(Program program, int threads, int64_t rows, int64_t columns)
      : plan(std::make_unique<Plan>(std::move(program), threads)),
        x(static_cast<size_t>(rows * columns), 0.25f),
        input{kF32, {rows, columns}, x.data()} {}
  Part(Part&&) = delete;

  void run(float* answer) {
    RequestInputs request(&input, 1);
    Run run = plan->run({&request, 1});
    ConstTensorView y = run.output(0, 0);
    std::copy_n(y.as<float>(), y.elements(), answer);
  }
};
using Parts = std::vector<std::unique_ptr<Part>>;

// Medians over blocks that take turns, in microseconds.
struct Times {
  double plan, kept, split;
};

template <class Whole, class Kept, class Split>
Times alternate(Whole whole, Kept kept, Split split) {
  std::vector<double> times[3];
  auto block = [](auto run, std::vector<double>& out) {
    for (int i = 0; i < 5; ++i) run();
    auto end = Clock::now() + std::chrono::milliseconds(40);
    std::vector<double> each;
    while (Clock::now() < end) {
      auto start = Clock::now();
      run();
      each.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    std::ranges::nth_element(each, each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2));
    out.push_back(each[each.size() / 2]);
  };
  for (int round = 0; round < 9; ++round) {
    block(whole, times[0]);
    block(kept, times[1]);
    block(split, times[2]);
  }
  for (auto& medians : times) std::ranges::sort(medians);
  return {times[0][4], times[1][4], times[2][4]};
}

// One Plan per thread, each into its own part of `answers`.
struct Divided {
  Parts parts;
  std::vector<float> answers;
  size_t width;  // of one part's answer
  std::shared_ptr<ThreadPool> pool = shared_pool(static_cast<int>(parts.size()));

  Divided(Parts made, int64_t outputs)
      : parts(std::move(made)),
        answers(parts.size() * static_cast<size_t>(outputs)),
        width(static_cast<size_t>(outputs)) {}

  void run() {
    auto task = [&](int64_t t, int) {
      auto part = static_cast<size_t>(t);
      parts[part]->run(answers.data() + part * width);
    };
    pool->run(static_cast<int64_t>(parts.size()), task);
  }

  void run_and_add() {
    run();
    for (size_t p = 1; p < parts.size(); ++p) {
      for (size_t i = 0; i < width; ++i) answers[i] += answers[p * width + i];
    }
  }
};

Times bench_linear(Isa isa, int threads, int64_t m, int64_t k, int64_t n) {
  std::vector<float> weights(static_cast<size_t>(k * n), 0.5f);
  std::vector<float> answer(static_cast<size_t>(m * n));
  Part whole(linear(isa, k, n, weights.data()), threads, m, k);
  Parts by_columns, by_k;
  for (int t = 0; t < threads; ++t) {
    by_columns.push_back(
        std::make_unique<Part>(linear(isa, k, n / threads, weights.data()), 1, m, k));
    by_k.push_back(
        std::make_unique<Part>(linear(isa, k / threads, n, weights.data()), 1, m, k / threads));
  }
  Divided kept(std::move(by_columns), m * (n / threads)), split(std::move(by_k), m * n);
  return alternate([&] { whole.run(answer.data()); }, [&] { kept.run(); },
                   [&] { split.run_and_add(); });
}

Times bench_trees(Isa isa, int threads, int64_t rows) {
  std::vector<float> answer(static_cast<size_t>(rows));
  Part whole(one_op(isa, make_ensemble(isa), nullptr), threads, rows, kFeatures);
  Parts by_trees;
  for (int t = 0; t < threads; ++t) {
    Program program = one_op(isa, make_ensemble(isa, kTrees / threads), nullptr);
    by_trees.push_back(std::make_unique<Part>(std::move(program), 1, rows, kFeatures));
  }
  Divided split(std::move(by_trees), rows);
  auto plan = [&] { whole.run(answer.data()); };
  Times times = alternate(plan, plan, [&] { split.run_and_add(); });
  times.plan = times.kept = (times.plan + times.kept) / 2;
  return times;
}

void report(const char* what, int64_t rows, Times us, bool last) {
  std::printf("  {\"what\": \"%s\", \"rows\": %ld, ", what, static_cast<long>(rows));
  std::printf("\"plan_us\": %.3f, \"kept_us\": %.3f, \"split_us\": %.3f}%s\n", us.plan, us.kept,
              us.split, last ? "" : ",");
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  using namespace headrace;
  int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 2) {
    std::fprintf(stderr, "got threads '%s', expected at least 2: one thread splits nothing\n",
                 argv[1]);
    return 2;
  }
  Isa isa = selected_isa();
  std::printf("[\n");
  for (int64_t m : {1, 8, 128}) {
    report("Linear 384 x 1536", m, bench_linear(isa, threads, m, 384, 1536), false);
    report("Linear 1536 x 384", m, bench_linear(isa, threads, m, 1536, 384), false);
  }
  report("300 trees x 63 leaves", 1, bench_trees(isa, threads, 1), false);
  report("300 trees x 63 leaves", 32, bench_trees(isa, threads, 32), true);
  std::printf("]\n");
}
