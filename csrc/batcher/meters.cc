#include "batcher/meters.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace headrace {
namespace {

// Long enough to smooth arrivals, short enough for an autoscaler to follow.
constexpr double kMemory_s = 2.0;
// The weight of a new value in a mean, if values come faster than the memory fades.
constexpr double kNewest = 0.05;

// How much of the memory is left after the time between them; readers may be a little behind.
double left_of_memory(Clock::time_point from, Clock::time_point to) {
  return std::exp(-std::max(0.0, seconds_between(from, to)) / kMemory_s);
}

}  // namespace

void RateMeter::add(Clock::time_point now, double value) {
  if (first_ == Clock::time_point{}) first_ = last_ = now;
  faded_ = faded_ * left_of_memory(last_, now) + value;
  last_ = std::max(last_, now);
}

double RateMeter::per_second(Clock::time_point now) const {
  if (first_ == Clock::time_point{}) return 0;
  double faded = faded_ * left_of_memory(last_, now);
  // The memory of a meter that has watched for t seconds holds 1 - exp(-t / memory) of a full one.
  // A start shorter than a tenth of the memory says too little to be scaled up further.
  double watched_s = std::max(seconds_between(first_, now), kMemory_s / 10);
  return faded / (kMemory_s * -std::expm1(-watched_s / kMemory_s));
}

void FadingMean::add(Clock::time_point now, double value) {
  double old = any_ ? left_of_memory(last_, now) * (1 - kNewest) : 0;
  mean_ = mean_ * old + value * (1 - old);
  last_ = now;
  any_ = true;
}

double FadingMean::value(Clock::time_point now) const {
  return any_ ? mean_ * left_of_memory(last_, now) : 0;
}

double DurationHistogram::upper_bound(int bucket) {
  if (bucket >= kBuckets - 1) return std::numeric_limits<double>::infinity();
  return 1e-6 * std::exp2(0.5 * bucket);
}

void DurationHistogram::add(double seconds) {
  // The first bucket whose bound is not below: bound = 1e-6 * 2^(bucket / 2).
  double place = seconds > 1e-6 ? std::ceil(2 * std::log2(seconds * 1e6) - 1e-9) : 0;
  ++counts_[static_cast<size_t>(std::min<double>(place, kBuckets - 1))];
  ++count_;
  total_s_ += seconds;
}

double DurationHistogram::quantile(double q) const {
  double wanted = q * static_cast<double>(count_);
  double seen = 0;
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    double here = static_cast<double>(counts_[static_cast<size_t>(bucket)]);
    if (here > 0 && seen + here >= wanted) {
      double low = bucket == 0 ? 0 : upper_bound(bucket - 1);
      double high = bucket == kBuckets - 1 ? low : upper_bound(bucket);
      return low + (high - low) * std::max(0.0, wanted - seen) / here;
    }
    seen += here;
  }
  return 0;
}

}  // namespace headrace
