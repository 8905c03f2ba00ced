// How long a Batch takes: seconds = a + b * work.
#pragma once

#include <cstdint>
#include <span>

namespace headrace {

// Fitted once from warm-up runs, then corrected by every Batch: least squares on relative errors,
// with exponentially fading weights. One slow Batch (a page fault, a descheduled thread) counts at
// most as twice the estimate; three in a row on the same side are a change of speed, and rescale
// the whole model at once. Of a single observation nobody knows whether it is a slow one: it gives
// way to another that is much faster. Not thread-safe.
class CostModel {
 public:
  struct Sample {
    double work;
    double seconds;
  };

  // Starts over from these samples; those that are not positive are left out.
  void fit(std::span<const Sample> samples);
  // Corrects the model by one Batch that ran.
  void observe(double work, double seconds);
  // Whether a Batch took so much more or less than estimated that the estimate is in doubt.
  static bool is_outlier(double seconds, double estimate);

  // False until the first sample or observation: then seconds() is 0.
  bool known() const { return known_; }
  double seconds(double work) const { return fixed_s_ + per_work_s_ * work; }
  double fixed_s() const { return fixed_s_; }
  double per_work_s() const { return per_work_s_; }

 private:
  // Weighted sums over samples (work x, seconds y).
  struct Sums {
    double n = 0, x = 0, xx = 0, y = 0, xy = 0;
    void add(double work, double seconds, double weight);
    void scale(double factor);
    void change_speed(double ratio);
  };
  double without_outliers(double seconds, double estimate);
  void solve();

  bool known_ = false;
  double lone_work_ = 0;  // of the one observation that is all there is; else 0
  double fixed_s_ = 0;
  double per_work_s_ = 0;
  // What the fit was, with a small weight that never fades: a stream of equal Batches says nothing
  // about the slope, and must not make the sums singular.
  Sums prior_;
  Sums recent_;
  int streak_ = 0;           // consecutive outliers: > 0 slow ones, < 0 fast ones
  double streak_ratio_ = 1;  // the mildest ratio among them
};

}  // namespace headrace
