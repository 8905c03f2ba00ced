#include "batcher/meters.h"

#include <random>
#include <vector>

#include "batcher/cost_model.h"
#include "check.h"

namespace headrace {
namespace {

using std::chrono::milliseconds;

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

HR_TEST(rate_meter_measures_from_the_start) {
  RateMeter meter;
  Clock::time_point now{std::chrono::hours(1)};
  HR_CHECK_EQ(meter.per_second(now), 0.0);
  for (int i = 0; i < 1000; ++i) meter.add(now += milliseconds(2), 1);  // 500 per second
  HR_CHECK_NEAR(meter.per_second(now) / 500, 1.0, 0.02);
  HR_CHECK(meter.per_second(now + std::chrono::seconds(20)) < 1);
}

HR_TEST(fading_mean_fades_when_idle) {
  FadingMean mean;
  Clock::time_point now{std::chrono::hours(1)};
  for (int i = 0; i < 500; ++i) mean.add(now += milliseconds(1), 3.0);
  HR_CHECK_NEAR(mean.value(now), 3.0, 0.01);
  HR_CHECK(mean.value(now + std::chrono::seconds(20)) < 0.01);
}

HR_TEST(duration_histogram_gives_quantiles) {
  DurationHistogram histogram;
  HR_CHECK_EQ(histogram.quantile(0.5), 0.0);
  for (int i = 1; i <= 1000; ++i) histogram.add(i * 1e-4);
  HR_CHECK_NEAR(histogram.quantile(0.5) / 0.05, 1.0, 0.2);
  HR_CHECK_NEAR(histogram.quantile(0.99) / 0.099, 1.0, 0.3);
  histogram.add(0);
  histogram.add(1e9);
  HR_CHECK_EQ(histogram.count(), 1002);
  for (int b = 0; b + 1 < DurationHistogram::kBuckets; ++b) {
    DurationHistogram one;
    one.add(DurationHistogram::upper_bound(b));
    HR_CHECK_EQ(one.counts()[static_cast<size_t>(b)], 1);
  }
}

}  // namespace
}  // namespace headrace
