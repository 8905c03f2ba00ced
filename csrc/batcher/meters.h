// What the Batcher measures about itself. None of these is thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "batcher/job.h"

namespace headrace {

// The average of recent values per second (events: 1 each; busy time: seconds each), with
// exponentially fading memory. It knows how long it has been watching, so the first seconds are
// not underestimated.
class RateMeter {
 public:
  void add(Clock::time_point now, double value);
  double per_second(Clock::time_point now) const;

 private:
  Clock::time_point first_{};
  Clock::time_point last_{};
  double faded_ = 0;
};

// The mean of recent values, which fades towards 0 while none come.
class FadingMean {
 public:
  void add(Clock::time_point now, double value);
  double value(Clock::time_point now) const;

 private:
  Clock::time_point last_{};
  double mean_ = 0;
  bool any_ = false;
};

// Counts of durations in buckets a factor sqrt(2) apart, from 1 us to about 90 s.
class DurationHistogram {
 public:
  static constexpr int kBuckets = 54;  // the last one has no upper bound

  void add(double seconds);
  // The duration that a share `q` of all counted ones does not exceed, interpolated; 0 if empty.
  double quantile(double q) const;
  int64_t count() const { return count_; }
  double total_s() const { return total_s_; }
  const std::array<int64_t, kBuckets>& counts() const { return counts_; }
  // Seconds; infinity for the last bucket.
  static double upper_bound(int bucket);

 private:
  std::array<int64_t, kBuckets> counts_{};
  int64_t count_ = 0;
  double total_s_ = 0;
};

}  // namespace headrace
