// How many Jobs the Batcher puts into a Batch whose members have deadlines.
#include <random>
#include <thread>

#include "batcher_bench.h"

namespace headrace {
namespace {

HR_TEST(batcher_keeps_batches_within_the_time_of_their_members) {
  Bench bench;
  bench.runner.body = [](std::span<Job* const> jobs) {
    // The cost model learns from what runs well only: keep it as fitted below.
    if (jobs.front()->id == 1) throw std::runtime_error("no");
  };
  bench.occupy();
  for (int i = 0; i < 5; ++i) bench.submit(0, std::chrono::seconds(25 + i));
  bench.submit(-1);
  fit_linear(bench.batcher, 1, 10);  // seconds: two fit into 25
  bench.runner.release();
  bench.runner.wait_for_runs(2);
  HR_CHECK_EQ(bench.runner.runs()[1].size(), 2u);
  bench.sink.wait_for(7);
}

HR_TEST(batcher_lets_no_batch_with_deadlines_grow_longer_than_pays) {
  // Of 12 Jobs that take 5 s each, beside a fixed cost.
  auto sizes_of = [](double fixed_s, Clock::duration allowed) {
    Bench bench;
    bench.runner.body = [](std::span<Job* const> jobs) {
      if (jobs.front()->id == 1) throw std::runtime_error("no");  // the cost model stays as fitted
    };
    bench.occupy();
    for (int i = 0; i < 12; ++i) bench.submit(0, allowed);
    fit_linear(bench.batcher, fixed_s, 5);
    bench.runner.release();
    bench.runner.wait_for_runs(2);
    size_t size = bench.runner.runs()[1].size();
    bench.sink.wait_for(13);
    return size;
  };
  HR_CHECK_EQ(sizes_of(0.01, std::chrono::seconds(84)), 2u);  // an eighth of the time allowed
  HR_CHECK_EQ(sizes_of(0.01, Clock::duration::max()), 12u);   // nobody waits for a deadline
  HR_CHECK_EQ(sizes_of(0.5, std::chrono::seconds(84)), 3u);   // 32 fixed costs
  HR_CHECK_EQ(sizes_of(10, std::chrono::seconds(84)), 12u);   // what is fixed is worth sharing
}

HR_TEST(overrun_follows_what_few_batches_exceed) {
  std::mt19937 random(5);
  std::lognormal_distribution<double> noise(0, 0.1);
  Overrun overrun;
  int beyond = 0;
  for (int i = 0; i < 20000; ++i) {
    double ratio = noise(random);
    beyond += ratio > overrun.factor();
    overrun.observe(ratio);
  }
  HR_CHECK(beyond > 20000 / 50 && beyond < 20000 / 10);
  // One stall is remembered for some dozens of Batches, and never for more than twice the time.
  overrun.observe(100);
  HR_CHECK_EQ(overrun.factor(), 2.0);
  for (int i = 0; i < 300; ++i) overrun.observe(1);
  HR_CHECK(overrun.factor() < 1.05);
}

// Has two Batches take far longer than was estimated.
void disturb(Bench& bench) {
  fit_linear(bench.batcher, 0.0005, 0.0005);
  bench.runner.body = [](auto) { std::this_thread::sleep_for(milliseconds(2)); };
  for (int i = 0; i < 2; ++i) {
    bench.submit();
    bench.sink.wait_for(static_cast<size_t>(i + 1));
  }
  bench.runner.body = [](std::span<Job* const> jobs) {
    if (jobs.front()->id == 3) throw std::runtime_error("no");  // the cost model stays as fitted
  };
}

HR_TEST(batcher_cuts_batches_where_they_have_taken_long) {
  Bench bench;
  disturb(bench);
  bench.occupy();
  for (int i = 0; i < 8; ++i) bench.submit(0, std::chrono::seconds(60));
  fit_linear(bench.batcher, 8, 8);  // 6 would end in 56 s; at up to twice that, 2 do
  bench.runner.release();
  bench.runner.wait_for_runs(4);
  size_t size = bench.runner.runs()[3].size();
  HR_CHECK(size >= 2 && size < 6);
  bench.sink.wait_for(11);
}

HR_TEST(batcher_admits_less_where_batches_have_taken_long) {
  auto admitted_of = [](bool disturbed) {
    Bench bench({.max_batch = 1});
    if (disturbed) disturb(bench);
    bench.occupy();
    fit_linear(bench.batcher, 0, 1);  // seconds
    int admitted = 0;
    try {
      for (;; ++admitted) bench.submit(0, milliseconds(41500));
    } catch (const OverloadedError&) {
    }
    bench.runner.release();
    return admitted;
  };
  HR_CHECK_EQ(admitted_of(false), 31);  // behind 30 s of work times 4/3, and its own second
  int less = admitted_of(true);
  HR_CHECK(less >= 20 && less < 28);  // times up to twice
}

}  // namespace
}  // namespace headrace
