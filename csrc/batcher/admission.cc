// What the Batcher expects of the future: whom it admits, and what it could sustain.
#include "batcher/admission.h"

#include <algorithm>
#include <cmath>

#include "batcher/batcher.h"

namespace headrace {
namespace {

// An estimate that only ever refuses would never be corrected. After so many refusals in a row by
// an idle Engine, and so many times as long after the last probe as this Job is believed to take,
// it is let in as a probe: two at first, so that an Engine that was slow for a while is soon found
// out to be fast again, and twice as many after each probe that was as slow as estimated. An Engine
// that stays slow spends 5% of its time on them.
constexpr double kProbeSpacingMin = 2;
constexpr double kProbeSpacingMax = 20;
// While callers compete, none may have more waiting than so many times what is still free: dynamic
// queue-length thresholds (Choudhury and Hahne, 1998). One greedy caller gets 2/3 of the room, two
// get 2/5 each, n get 2/(1 + 2n), and what is left is there for whoever asks for little.
constexpr double kShareOfFree = 2;
// Where nothing is known about how long Batches take.
constexpr double kRetryUnknown_s = 0.1;
constexpr double kRetryMin_s = 1e-3;

}  // namespace

void Batcher::admit(Job& job, Clock::time_point now, bool contended) {
  if (closing_) fail(ErrorKind::kBackendUnavailable, "got a Request for a closed Batcher");
  if (queue_.size() >= static_cast<size_t>(options_.max_queue)) {
    double retry_s = cost_.known() ? running_s(now) + cost_.fixed_s() : kRetryUnknown_s;
    throw OverloadedError(
        str("queue full: got ", queue_.size(), " waiting Requests, expected fewer ",
            "than max_queue=", options_.max_queue),
        std::max(retry_s, kRetryMin_s));
  }
  size_t own = queue_.backlog_of(job.caller).jobs;
  size_t room = static_cast<size_t>(options_.max_queue) - queue_.size();
  if (contended && static_cast<double>(own + 1) > kShareOfFree * static_cast<double>(room)) {
    throw OverloadedError(
        str("fair share: got ", own, " waiting Requests of this caller, expected at most ",
            kShareOfFree, " times the ", room, " places left while other callers wait"),
        std::max(cost_.known() ? running_s(now) + cost_.fixed_s() : kRetryUnknown_s, kRetryMin_s));
  }
  if (job.deadline == kNoDeadline) return;
  double left_s = seconds_between(now, job.deadline);
  if (left_s <= 0) {
    fail(ErrorKind::kDeadlineExceeded, "deadline: got one that passed ", -left_s * 1e3,
         " ms before the Request came, expected one in the future");
  }
  if (!cost_.known()) return;
  JobQueue::Ahead ahead = queue_.ahead_of(job);
  bool idle = ledger_.running == 0 && ahead.jobs == 0;
  double own_s = cost_.seconds(static_cast<double>(job.work));
  double before_s =
      running_s(now) + seconds_of(ahead.jobs + 1, ahead.work + job.work) - seconds_of(1, job.work);
  double factor = backlog_factor(overrun_);
  double needed_s = own_s + before_s * factor;
  if (needed_s <= left_s) {
    refused_idle_ = 0;
    if (contended) check_share(job, ahead, (left_s - own_s) / factor, now);
    return;
  }
  double retry_s = needed_s - left_s;
  if (idle) {
    // Nothing will have changed by then but that another probe is due. Where the last one was
    // faster than estimated, so may this Job be.
    double believed_s = own_s * std::min(probe_ratio_, 1.0);
    retry_s = probe_spacing_ * believed_s - seconds_between(probed_, now);
    if (++refused_idle_ > probe_spacing_ && retry_s < 0) {
      refused_idle_ = 0;
      job.probe = true;
      return;
    }
  }
  throw OverloadedError(
      str("got a deadline in ", left_s * 1e3, " ms, expected at least ", needed_s * 1e3,
          " ms: ", ahead.jobs, " Requests wait ahead, ", ledger_.running, " run"),
      std::max(retry_s, kRetryMin_s));
}

// Spaces probes by what one showed. One that failed, `learnt` is false, confirms nothing, and says
// as little against the estimate. Other Batches may be of far less work.
void Batcher::space_probes(double seconds, bool learnt, Clock::time_point now) {
  bool probe = std::ranges::any_of(batch_, [](const Job* job) { return job->probe; });
  if (!probe) return;
  probed_ = now;
  if (!learnt) return;
  probe_ratio_ = batch_estimate_s_ > 0 ? seconds / batch_estimate_s_ : 1;
  bool confirms = !CostModel::is_outlier(seconds, batch_estimate_s_);
  probe_spacing_ = confirms ? std::min(2 * probe_spacing_, kProbeSpacingMax) : kProbeSpacingMin;
}

// Throws if the Job would give its caller more than its share of the work that `backlog_s` seconds
// hold, in which what is left of the running Batch counts as what waits does. Whoever has nothing
// waiting may always have one Job wait: an Engine must not run dry for the sake of fairness.
void Batcher::check_share(const Job& job, const JobQueue::Ahead& ahead, double backlog_s,
                          Clock::time_point now) const {
  if (ahead.own.jobs == 0) return;
  double left = batch_estimate_s_ > 0 ? std::min(running_s(now) / batch_estimate_s_, 1.0) : 0;
  auto own_running = static_cast<double>(running_work_of_[job.caller % JobQueue::kCallers]);
  double own = static_cast<double>(ahead.own.work + job.work) + left * own_running;
  double used =
      static_cast<double>(ahead.work + job.work) + left * static_cast<double>(running_work_);
  if (own <= kShareOfFree * (work_within(backlog_s) - used)) return;
  throw OverloadedError(
      str("fair share: got ", ahead.own.jobs, " Requests of this caller among the ", ahead.jobs,
          " that wait ahead, expected fewer while other callers wait"),
      std::max(seconds_of(ahead.own.jobs, ahead.own.work), kRetryMin_s));
}

// The work that Batches as large as allowed do in so many seconds.
double Batcher::work_within(double seconds) const {
  double full = options_.max_batch * work_per_job_;
  double batches = std::floor(seconds / (cost_.fixed_s() + cost_.per_work_s() * full));
  double rest_s = seconds - batches * (cost_.fixed_s() + cost_.per_work_s() * full);
  double rest = (rest_s - cost_.fixed_s()) / std::max(cost_.per_work_s(), 1e-12);
  return batches * full + std::clamp(rest, 0.0, full);
}

// How long `jobs` Jobs take in Batches as large as allowed.
double Batcher::seconds_of(size_t jobs, int64_t work) const {
  size_t limit = static_cast<size_t>(options_.max_batch);
  double batches = static_cast<double>((jobs + limit - 1) / limit);
  return batches * cost_.fixed_s() + cost_.per_work_s() * static_cast<double>(work);
}

// How long the running Batch is likely to take from now on.
double Batcher::running_s(Clock::time_point now) const {
  if (ledger_.running == 0) return 0;
  double elapsed_s = seconds_between(batch_start_, now);
  return std::max(batch_estimate_s_ - elapsed_s, 0.1 * elapsed_s);
}

bool Batcher::too_late(const Job& job, Clock::time_point now) const {
  if (job.deadline == kNoDeadline) return false;
  // A probe is there to find out whether the estimate is right.
  double own_s = job.probe ? 0 : cost_.seconds(static_cast<double>(job.work));
  return seconds_between(now, job.deadline) < own_s;
}

// Capacity is reached at Batches as large as the options and half of the SLO allow: a Request that
// comes while one runs waits for it and then runs in the next.
void Batcher::measure_capacity(BatcherStats& stats) const {
  if (!cost_.known() || work_per_job_ <= 0) return;
  double per_job_s = std::max(cost_.per_work_s() * work_per_job_, 1e-12);
  double jobs = options_.max_batch;
  if (options_.slo_s > 0) {
    jobs = std::clamp((options_.slo_s / 2 - cost_.fixed_s()) / per_job_s, 1.0, jobs);
  }
  stats.capacity_rps = jobs / (cost_.fixed_s() + jobs * per_job_s);
  stats.capacity_work_per_s = stats.capacity_rps * work_per_job_;
}

}  // namespace headrace
