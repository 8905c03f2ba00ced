// What admission and packing go by, for the Batcher and for its simulation.
#pragma once

#include <algorithm>

namespace headrace {

// How much longer than estimated those Batches take that take long: about what one in thirty
// exceeds. An expectile (Newey and Powell, 1987), which a single number follows. Not thread-safe.
class Overrun {
 public:
  // Of a Batch that ran: measured / estimated seconds.
  void observe(double ratio) {
    factor_ += (ratio > factor_ ? kUp : kDown) * (ratio - factor_);
    // More would cut Batches whose fixed cost is high to less than they can do, for a single stall.
    factor_ = std::clamp(factor_, 1.0, kMost);
  }
  double factor() const { return factor_; }

 private:
  static constexpr double kUp = 0.5;
  static constexpr double kDown = 1.0 / 64;
  static constexpr double kMost = 2;

  double factor_ = 1;
};

// How many times the estimate of what goes before a Job has to fit into its time. A third is what
// Batches grow into: with nothing left, each would be cut down to its most urgent Job. It is more
// where Batches have taken long, because what is refused at once is better off than what expires.
inline double backlog_factor(const Overrun& overrun) {
  constexpr double kGrowth = 4.0 / 3;
  return std::max(kGrowth, overrun.factor());
}

// How long a Batch may be estimated to take, of Jobs that have deadlines and could also run in two.
// It ends by the earliest deadline, `left_s` from now, even if it takes long. And it grows no
// longer than pays: on a machine that is disturbed, all that run together are as late as the whole
// is, while those that wait may still be left out. `allowed_s`: from the arrival of the most urgent
// to its deadline.
inline double batch_most_s(double left_s, double allowed_s, double fixed_s,
                           const Overrun& overrun) {
  constexpr double kShort = 0.125;    // of the time allowed
  constexpr double kWorthwhile = 32;  // fixed costs: beyond, there are 3% to be gained
  return std::min(left_s / overrun.factor(), std::max(kShort * allowed_s, kWorthwhile * fixed_s));
}

}  // namespace headrace
