// What the Batcher expects Batches to take, of the works and seconds that it is told.
#include "batcher/cost_model.h"

#include <random>
#include <vector>

#include "batcher_bench.h"

namespace headrace {
namespace {

HR_TEST(cost_model_recovers_a_line) {
  CostModel model;
  HR_CHECK(!model.known());
  std::vector<CostModel::Sample> samples;
  for (double work : {1.0, 8.0, 64.0}) samples.push_back({work, 1e-3 + 2e-4 * work});
  model.fit(samples);
  HR_CHECK_NEAR(model.fixed_s() / 1e-3, 1.0, 1e-6);
  HR_CHECK_NEAR(model.per_work_s() / 2e-4, 1.0, 1e-6);
}

HR_TEST(cost_model_learns_without_a_fit) {
  CostModel model;
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    double work = 1 + random() % 64;
    double noise = 0.95 + 0.1 * (random() % 1000) / 1000.0;
    model.observe(work, (1e-3 + 1e-4 * work) * noise);
  }
  for (double work : {1.0, 16.0, 64.0}) {
    HR_CHECK_NEAR(model.seconds(work) / (1e-3 + 1e-4 * work), 1.0, 0.1);
  }
}

HR_TEST(cost_model_stays_sane_on_batches_of_one_size) {
  CostModel model;
  for (int i = 0; i < 1000; ++i) model.observe(8, 2e-3);
  HR_CHECK_NEAR(model.seconds(8) / 2e-3, 1.0, 1e-3);
  HR_CHECK(model.fixed_s() >= 0 && model.per_work_s() >= 0);
  HR_CHECK(model.seconds(16) <= 4.01e-3);
}

HR_TEST(cost_model_shrugs_off_an_outlier_and_follows_a_change) {
  CostModel model;
  std::vector<CostModel::Sample> samples{{1, 1e-3}, {10, 2e-3}, {100, 12e-3}};
  model.fit(samples);
  for (int i = 0; i < 20; ++i) model.observe(10, 2e-3);
  model.observe(10, 1.0);
  HR_CHECK_NEAR(model.seconds(10) / 2e-3, 1.0, 0.1);
  for (int i = 0; i < 20; ++i) model.observe(10, 2e-3);
  for (int i = 0; i < 4; ++i) model.observe(10, 20e-3);
  HR_CHECK_NEAR(model.seconds(10) / 20e-3, 1.0, 0.1);
  HR_CHECK_NEAR(model.seconds(100) / 120e-3, 1.0, 0.2);
  for (int i = 0; i < 4; ++i) model.observe(10, 2e-3);
  HR_CHECK_NEAR(model.seconds(10) / 2e-3, 1.0, 0.15);
}

HR_TEST(cost_model_lets_a_lone_slow_observation_go) {
  CostModel model;
  model.observe(8, 0.2);
  model.observe(8, 1e-3);
  HR_CHECK_NEAR(model.seconds(8) / 1e-3, 1.0, 1e-6);
  // Later ones have to come three in a row, and that less work takes less says nothing of the rest.
  model.observe(8, 1e-3);
  model.observe(8, 1e-5);
  HR_CHECK(model.seconds(8) > 0.5e-3);
  CostModel other;
  other.observe(100, 1e-3);
  other.observe(1, 1e-5);
  HR_CHECK(other.seconds(100) > 0.8e-3);
}

// A model fitted to warm-up runs on a line.
CostModel fitted(double fixed_s, double per_work_s) {
  std::vector<CostModel::Sample> samples;
  for (double work : {1.0, 10.0, 100.0, 1000.0}) {
    samples.push_back({work, fixed_s + per_work_s * work});
  }
  CostModel model;
  model.fit(samples);
  return model;
}

void observe_many(CostModel& model, int count, double work, double seconds) {
  for (int i = 0; i < count; ++i) model.observe(work, seconds);
}

// What is fixed takes a tenth of what it was fitted to, what heavy Batches take is as before.
HR_TEST(cost_model_does_not_believe_heavy_batches_to_be_fast_since_light_ones_are) {
  CostModel model = fitted(1e-3, 1e-5);
  auto truth = [](double work) { return 1e-4 + 1e-5 * work; };
  for (int i = 0; i < 300; ++i) {
    model.observe(1, truth(1));
    HR_CHECK(model.seconds(1000) > 0.9 * truth(1000));
    HR_CHECK(model.seconds(100) > 0.9 * truth(100));
  }
  HR_CHECK_NEAR(model.seconds(1) / truth(1), 1.0, 0.05);
  HR_CHECK(model.seconds(1000) < 1.2 * truth(1000));
  // Whatever runs later, and in whatever order.
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    double work = random() % 50 == 0 ? 1000 : 1 + random() % 8;
    HR_CHECK(model.seconds(1000) > 0.8 * truth(1000));
    HR_CHECK(model.seconds(1000) < 1.5 * truth(1000));
    model.observe(work, truth(work) * (0.9 + 0.2 * (random() % 100) / 100.0));
  }
}

// No line goes through both: little work takes a third of its share.
HR_TEST(cost_model_holds_what_heavy_batches_take_where_no_line_does) {
  CostModel model = fitted(0, 1e-5);
  for (int round = 0; round < 20; ++round) {
    observe_many(model, 30, 1, 0.3e-5);
    HR_CHECK_NEAR(model.seconds(1) / 0.3e-5, 1.0, 0.1);
    HR_CHECK_NEAR(model.seconds(1000) / 1e-2, 1.0, 0.1);
    model.observe(1000, 1e-2);
    HR_CHECK_NEAR(model.seconds(1000) / 1e-2, 1.0, 0.1);
  }
}

// The machine itself became faster than it was at the fit. Batches of up to twice the work of one
// that was fast are believed to be, and once that are all, no light ones are needed to keep it so.
HR_TEST(cost_model_believes_heavy_batches_to_be_fast_when_one_was) {
  auto before = [](double work) { return 1e-3 + 1e-5 * work; };
  CostModel model = fitted(1e-3, 1e-5);
  double sure = 1;
  for (double work : {1.0, 30.0, 60.0, 600.0}) {
    observe_many(model, work == 1 ? 20 : 1, work, before(work) / 5);
    sure = std::max(sure, work);
    for (double other : {1.0, 2.0, 45.0, 119.0, 1000.0}) {
      double expected = other <= 2 * sure ? before(other) / 5 : before(other);
      HR_CHECK_NEAR(model.seconds(other) / expected, 1.0, 0.15);
    }
  }
  observe_many(model, 500, 1, before(1) / 5);
  HR_CHECK_NEAR(model.seconds(1000) / before(1000) * 5, 1.0, 0.15);
}

// Slow for a while, as seen by light Batches alone or by a heavy one too: what comes back is what
// was known, of all Batches.
HR_TEST(cost_model_lets_a_speed_that_was_known_come_back) {
  for (int heavy = 0; heavy < 2; ++heavy) {
    CostModel model = fitted(1e-3, 1e-5);
    auto truth = [](double work) { return 1e-3 + 1e-5 * work; };
    for (int round = 0; round < 5; ++round) {
      observe_many(model, heavy, 1000, 5 * truth(1000));
      observe_many(model, 30, 1, 5 * truth(1));
      HR_CHECK_NEAR(model.seconds(1000) / (5 * truth(1000)), 1.0, 0.15);
      observe_many(model, 30, 1, truth(1));
      HR_CHECK_NEAR(model.seconds(1) / truth(1), 1.0, 0.1);
      HR_CHECK_NEAR(model.seconds(1000) / truth(1000), 1.0, 0.15);
      observe_many(model, heavy, 1000, truth(1000));
    }
  }
}

// 160 ms are too few for a heavy Job that takes 210, however fast the light ones before it were.
HR_TEST(batcher_refuses_a_heavy_job_after_light_ones_that_were_fast) {
  Bench bench;
  fit_linear(bench.batcher, 0.010, 0.002);
  for (size_t i = 1; i <= 5; ++i) {
    bench.submit();
    bench.sink.wait_for(i);
  }
  HR_CHECK(bench.batcher.stats().cost_fixed_s < 0.005);  // they were noticed
  HR_CHECK_THROWS(bench.submit(0, milliseconds(160), 100), OverloadedError);
  bench.submit(0, std::chrono::seconds(5), 100);
  bench.submit(0, milliseconds(160), 1);
  bench.sink.wait_for(7);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 7);
}

}  // namespace
}  // namespace headrace
