// What the thread that has the Engine does: runs what was packed, and finds culprits.
#include <algorithm>
#include <exception>

#include "batcher/batcher.h"

namespace headrace {
namespace {

// A thread that was descheduled for so long looks the same. Then some are handed over for nothing,
// which costs less than to hold up, again and again, all that waits for an event loop.
constexpr double kSurprise_s = 1e-3;
constexpr double kSurpriseEstimates = 10;
constexpr double kPauses = 100;

}  // namespace

// Runs what pack() took, and gives the Engine back.
void Batcher::run_taken() {
  tell_expired(late_, Clock::now());
  if (!batch_.empty()) run_batch();
  bool wake;
  {
    std::lock_guard lock(mutex_);
    busy_ = false;
    update_ready();
    wake = parked_ && (!queue_.empty() || closing_);
  }
  if (wake) work_came_.notify_one();
}

void Batcher::run_batch() {
  int64_t work = 0;
  for (Job* job : batch_) work += job->work;
  auto start = Clock::now();
  bool whole = try_run(batch_);
  if (!whole) split(batch_);
  auto now = Clock::now();
  {
    std::lock_guard lock(mutex_);
    double seconds = seconds_between(start, now);
    compute_.add(seconds);
    batch_seconds_[batch_.size()] += seconds;
    running_work_ = 0;
    for (const Job* job : batch_) running_work_of_[job->caller % JobQueue::kCallers] = 0;
    busy_time_.add(now, seconds);
    bool learnt = whole && batch_.front()->status == JobStatus::kOk;
    note_time(work, seconds, learnt, now);
  }
  sink_.completed(batch_);
}

// Corrects what is expected of Batches by one that ran. One that failed teaches nothing about what
// its Jobs take when they are well: then `learnt` is false.
void Batcher::note_time(int64_t work, double seconds, bool learnt, Clock::time_point now) {
  if (learnt) {
    if (batch_estimate_s_ > 0) overrun_.observe(seconds / batch_estimate_s_);
    cost_.observe(static_cast<double>(work), seconds);
  }
  space_probes(seconds, learnt, now);
  note_surprise(seconds, learnt, now);
}

// After a Batch that took far longer than it was estimated to, none is run on a thread that has
// other things to do until the time that it took is but a hundredth. Of one that failed, `learnt`
// is false, nothing else says that it takes long.
void Batcher::note_surprise(double seconds, bool learnt, Clock::time_point now) {
  if (seconds < kSurpriseEstimates * batch_estimate_s_) return;
  if (learnt && seconds < kSurprise_s) return;
  here_from_ = now + to_duration(kPauses * seconds);
}

// True if all Jobs have ended: well, or, where there is only one, with its error.
bool Batcher::try_run(std::span<Job*> jobs) {
  Job& first = *jobs.front();
  try {
    runner_.run(jobs);
    end(jobs, JobStatus::kOk);
    return true;
  } catch (const Error& error) {
    if (jobs.size() > 1) return false;
    first.error = error.kind();
    first.message = error.what();
  } catch (const std::exception& error) {
    if (jobs.size() > 1) return false;
    first.error = ErrorKind::kExecution;
    first.message = error.what();
  } catch (...) {
    if (jobs.size() > 1) return false;
    first.error = ErrorKind::kExecution;
    first.message = "got an exception of an unknown type from the Engine";
  }
  end(jobs, JobStatus::kFailed);
  return true;
}

// Runs the halves of a Batch that failed, and of those what fails again, down to the culprits.
// Whose deadline passes meanwhile is not run any more.
void Batcher::split(std::span<Job*> jobs) {
  for (std::span<Job*> half : {jobs.first(jobs.size() / 2), jobs.subspan(jobs.size() / 2)}) {
    auto now = Clock::now();
    auto in_time = std::partition(half.begin(), half.end(),
                                  [&](const Job* job) { return job->deadline > now; });
    std::span<Job*> late(in_time, half.end());
    for (Job* job : late) {
      job->error = ErrorKind::kDeadlineExceeded;
      job->message =
          "not computed: the deadline passed while a failed Batch was run again in parts";
    }
    end(late, JobStatus::kExpired);
    std::span<Job*> left(half.begin(), in_time);
    if (!left.empty() && !try_run(left)) split(left);
  }
}

void Batcher::end(std::span<Job* const> jobs, JobStatus status) {
  auto count = static_cast<int64_t>(jobs.size());
  std::lock_guard lock(mutex_);
  for (Job* job : jobs) job->status = status;
  ledger_.running -= count;
  (status == JobStatus::kOk       ? ledger_.ok
   : status == JobStatus::kFailed ? ledger_.failed
                                  : ledger_.expired) += count;
}

}  // namespace headrace
