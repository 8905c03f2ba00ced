// Whom a Batch is made of, and who comes too late for any.
#include "batcher/batcher.h"

namespace headrace {
namespace {

// How often expired Jobs are swept out while a Batch takes long, and for how long the sweeper goes
// on after the last Job left, so that no Job pays for waking it.
constexpr auto kSweep = std::chrono::milliseconds(10);
constexpr int kIdleSweeps = 100;

}  // namespace

// Takes the Engine, and moves Jobs from the queue to batch_, most urgent first: at most max_batch,
// and no more than all of them have time for, see batch_most_s(). Those for which it is too late go
// to late_.
void Batcher::pack() {
  busy_ = true;
  running_ = std::this_thread::get_id();
  update_ready();
  batch_.clear();
  late_.clear();
  auto now = Clock::now();
  queue_.take_expired(now, [this](Job* job) { late_.push_back(job); });
  int64_t work = 0;
  auto earliest = kNoDeadline;
  double allowed_s = 0;  // of the Job whose deadline is the earliest
  while (!queue_.empty() && batch_.size() < static_cast<size_t>(options_.max_batch)) {
    Job* job = queue_.front();
    if (too_late(*job, now)) {
      late_.push_back(queue_.pop());
      continue;
    }
    if (job->deadline < earliest) {
      earliest = job->deadline;
      allowed_s = seconds_between(job->arrival, earliest);
    }
    double batch_s = cost_.seconds(static_cast<double>(work + job->work));
    if (!batch_.empty() && earliest != kNoDeadline &&
        batch_s >
            batch_most_s(seconds_between(now, earliest), allowed_s, cost_.fixed_s(), overrun_)) {
      break;
    }
    batch_.push_back(queue_.pop());
    work += job->work;
    batch_estimate_s_ = batch_s;
  }
  count_expired(late_);
  if (!batch_.empty()) dispatch(now);
}

// Enters batch_ in the books as running.
void Batcher::dispatch(Clock::time_point now) {
  auto jobs = static_cast<int64_t>(batch_.size());
  double delay_s = 0;
  for (Job* job : batch_) {
    job->status = JobStatus::kRunning;
    running_work_ += job->work;
    running_work_of_[job->caller % JobQueue::kCallers] += job->work;
    double waited_s = seconds_between(job->arrival, now);
    queue_delay_.add(waited_s);
    delay_s += waited_s;
  }
  delay_.add(now, delay_s / static_cast<double>(jobs));
  ledger_.waiting -= jobs;
  ledger_.running += jobs;
  batch_start_ = now;
  refused_idle_ = 0;
  ++batches_;
  ++batch_sizes_[batch_.size()];
}

// Enters Jobs that were taken from the queue in the books as expired.
void Batcher::count_expired(std::span<Job* const> jobs) {
  for (Job* job : jobs) job->status = JobStatus::kExpired;
  ledger_.waiting -= static_cast<int64_t>(jobs.size());
  ledger_.expired += static_cast<int64_t>(jobs.size());
}

void Batcher::tell_expired(std::span<Job* const> jobs, Clock::time_point now) {
  for (Job* job : jobs) {
    job->error = ErrorKind::kDeadlineExceeded;
    job->message = str("not computed: waited ", seconds_between(job->arrival, now) * 1e3,
                       " ms, too long for a deadline of ",
                       seconds_between(job->arrival, job->deadline) * 1e3, " ms");
  }
  if (!jobs.empty()) sink_.completed(jobs);
}

// The sweeper's thread. Between Batches pack() looks for expired Jobs itself.
void Batcher::sweep() {
  std::unique_lock lock(mutex_);
  int idle = 0;
  while (!sweeper_stops_) {
    if (idle < kIdleSweeps) {
      sweep_.wait_for(lock, kSweep);
    } else {
      sweeper_parked_ = true;
      sweep_.wait(lock, [this] { return sweeper_stops_ || !queue_.empty(); });
      sweeper_parked_ = false;
      idle = 0;
      continue;
    }
    idle = queue_.empty() ? idle + 1 : 0;
    swept_.clear();
    auto now = Clock::now();
    queue_.take_expired(now, [this](Job* job) { swept_.push_back(job); });
    if (swept_.empty()) continue;
    count_expired(swept_);
    update_ready();
    lock.unlock();
    tell_expired(swept_, now);
    lock.lock();
  }
}

}  // namespace headrace
