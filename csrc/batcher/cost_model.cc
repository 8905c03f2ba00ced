#include "batcher/cost_model.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr double kPriorWeight = 0.2;  // of about 20 that the recent Batches have together
constexpr double kFade = 0.95;        // per Batch: a memory of about 20 Batches
constexpr double kOutlier = 2.0;      // times or part of the estimate
constexpr int kStreak = 3;
constexpr double kReach = 2;          // times the work of a Batch: so much more is not far from it
constexpr double kSecondsMin = 1e-7;  // below the clock's noise, relative errors mean nothing

}  // namespace

void CostModel::Sums::add(double work, double seconds, double weight) {
  n += weight;
  x += weight * work;
  xx += weight * work * work;
  y += weight * seconds;
  xy += weight * work * seconds;
}

void CostModel::Sums::scale(double factor) {
  n *= factor;
  x *= factor;
  xx *= factor;
  y *= factor;
  xy *= factor;
}

// Every sample's seconds times `ratio`; the weights are relative, so they change by its square.
void CostModel::Sums::change_speed(double ratio) {
  scale(1 / (ratio * ratio));
  y *= ratio;
  xy *= ratio;
}

void CostModel::fit(std::span<const Sample> samples) {
  *this = CostModel();
  double work_min = 0;
  double work_max = 0;
  int added = 0;
  auto add = [&](double work, double seconds) {
    seconds = std::max(seconds, kSecondsMin);
    prior_.add(work, seconds, 1 / (seconds * seconds));
    ++added;
  };
  for (const Sample& sample : samples) {
    if (!(sample.work > 0) || !(sample.seconds > 0)) continue;
    add(sample.work, sample.seconds);
    work_min = known_ ? std::min(work_min, sample.work) : sample.work;
    work_max = std::max(work_max, sample.work);
    known_ = true;
  }
  if (!known_) return;
  heaviest_ = work_max;
  recent_ = prior_;
  // Samples of one size leave the slope open: assume that half of the time is fixed.
  if (work_min == work_max) add(0, prior_.y / prior_.n / 2);
  prior_.scale(kPriorWeight / added);
  solve();
}

bool CostModel::is_outlier(double seconds, double estimate) {
  return seconds > kOutlier * estimate || kOutlier * seconds < estimate;
}

// What was expected of a Batch that took so long. Where that is nearer to the line than to what is
// held, Batches of its work are fast too; else it corrects what is held of more than `reach_`.
double CostModel::expect(double work, double seconds) {
  double line_s = line_.seconds(work);
  if (reach_ == kAll) return line_s;
  double held_s = std::max(held_.seconds(work), kSecondsMin);
  if (line_s < held_s && seconds * seconds < line_s * held_s) believe_up_to(work);
  if (work <= reach_) return line_s;
  double error = std::clamp(seconds / held_s, 1 / kOutlier, kOutlier) - 1;
  held_.fixed_s *= 1 + (1 - kFade) * error;
  held_.per_work_s *= 1 + (1 - kFade) * error;
  return std::max(line_s, held_s);
}

double CostModel::without_outliers(double work, double seconds, double estimate) {
  if (!is_outlier(seconds, estimate)) {
    streak_ = 0;
    return seconds;
  }
  int side = seconds > estimate ? 1 : -1;
  if (side * streak_ <= 0) {
    streak_ = 0;
    streak_work_ = work;
    streak_line_ = line_;
    streak_recent_ = recent_;
  }
  // The estimate has followed those before by a little.
  double followed = line_.seconds(work) / std::max(streak_line_.seconds(work), kSecondsMin);
  double ratio = seconds / estimate * followed;
  if (streak_ == 0) streak_ratio_ = ratio;
  streak_ += side;
  streak_ratio_ = side > 0 ? std::min(streak_ratio_, ratio) : std::max(streak_ratio_, ratio);
  streak_work_ = side > 0 ? std::min(streak_work_, work) : std::max(streak_work_, work);
  if (side * streak_ >= kStreak) {
    change_speed(streak_ratio_);
    streak_ = 0;
    return seconds;
  }
  return estimate * (side > 0 ? kOutlier : 1 / kOutlier);
}

void CostModel::change_speed(double ratio) {
  // What is held already was known before the speed changed for the first time: when it changes
  // back, heavy Batches are believed to as well.
  if (reach_ == kAll) {
    held_ = streak_line_;
    reach_ = 0;
  }
  believe_up_to(streak_work_);
  recent_ = streak_recent_;
  prior_.change_speed(ratio);
  recent_.change_speed(ratio);
}

void CostModel::believe_up_to(double work) {
  reach_ = std::max(reach_, kReach * work);
  if (reach_ >= heaviest_) reach_ = kAll;
}

void CostModel::observe(double work, double seconds) {
  seconds = std::max(seconds, kSecondsMin);
  // That less work takes in proportion less is no surprise.
  double lone_s = lone_work_ > 0 ? this->seconds(lone_work_) * std::min(work / lone_work_, 1.0) : 0;
  if (!known_ || kOutlier * seconds < lone_s) {
    Sample first{work, seconds};
    fit({&first, 1});
    lone_work_ = known_ ? work : 0;
    return;
  }
  lone_work_ = 0;
  heaviest_ = std::max(heaviest_, work);
  double estimate = std::max(expect(work, seconds), kSecondsMin);
  seconds = without_outliers(work, seconds, estimate);
  recent_.scale(kFade);
  recent_.add(work, seconds, 1 / (estimate * estimate));
  solve();
}

void CostModel::solve() {
  double n = prior_.n + recent_.n;
  double x = prior_.x + recent_.x;
  double xx = prior_.xx + recent_.xx;
  double y = prior_.y + recent_.y;
  double xy = prior_.xy + recent_.xy;
  double determinant = n * xx - x * x;
  auto& [fixed_s, per_work_s] = line_;
  if (determinant > 1e-12 * n * xx) {
    per_work_s = (n * xy - x * y) / determinant;
    fixed_s = (y - per_work_s * x) / n;
  }
  if (per_work_s < 0) {
    per_work_s = 0;
    fixed_s = y / n;
  } else if (fixed_s < 0) {
    fixed_s = 0;
    per_work_s = xy / xx;
  }
}

}  // namespace headrace
