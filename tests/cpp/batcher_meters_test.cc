#include "batcher/meters.h"

#include "check.h"

namespace headrace {
namespace {

using std::chrono::milliseconds;

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
