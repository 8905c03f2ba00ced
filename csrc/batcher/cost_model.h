// How long a Batch takes: seconds = a + b * work.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

namespace headrace {

// Fitted once from warm-up runs, then corrected by every Batch: least squares on relative errors,
// with exponentially fading weights. One slow Batch (a page fault, a descheduled thread) counts at
// most as twice the estimate; three in a row on the same side are a change of speed, and rescale
// the whole line at once. Of a single observation nobody knows whether it is a slow one: it gives
// way to another that is much faster.
//
// Light Batches may have become fast where heavy ones have not: what is fixed may cost less, or
// little data stay in a cache. Who is believed to be fast and is not comes late, so what was known
// of heavier Batches is held until one of them was fast too. That they are slow needs no such
// proof: the worst of it is a probe. Not thread-safe.
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
  double seconds(double work) const {
    double line_s = line_.seconds(work);
    return work <= reach_ ? line_s : std::max(line_s, held_.seconds(work));
  }
  // The line that the Batches of late lie on, which those heavier than all of them may not.
  double fixed_s() const { return line_.fixed_s; }
  double per_work_s() const { return line_.per_work_s; }

 private:
  struct Line {
    double fixed_s = 0;
    double per_work_s = 0;
    double seconds(double work) const { return fixed_s + per_work_s * work; }
  };
  // Weighted sums over samples (work x, seconds y).
  struct Sums {
    double n = 0, x = 0, xx = 0, y = 0, xy = 0;
    void add(double work, double seconds, double weight);
    void scale(double factor);
    void change_speed(double ratio);
  };
  double expect(double work, double seconds);
  double without_outliers(double work, double seconds, double estimate);
  void change_speed(double ratio);
  void believe_up_to(double work);
  void solve();

  static constexpr double kAll = std::numeric_limits<double>::infinity();

  bool known_ = false;
  double lone_work_ = 0;  // of the one observation that is all there is; else 0
  double heaviest_ = 0;   // work, of all that were ever seen
  Line line_;
  // After a change of speed: how long Batches of more work than `reach_` take at least.
  Line held_;
  double reach_ = kAll;
  // What the fit was, with a small weight that never fades: a stream of equal Batches says nothing
  // about the slope, and must not make the sums singular.
  Sums prior_;
  Sums recent_;
  int streak_ = 0;           // consecutive outliers: > 0 slow ones, < 0 fast ones
  double streak_ratio_ = 1;  // the mildest ratio among them
  double streak_work_ = 0;   // the least work of slow ones, the most of fast ones
  Line streak_line_;         // before them, and
  Sums streak_recent_;
};

}  // namespace headrace
