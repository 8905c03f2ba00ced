#include "batcher/batcher.h"

#include <algorithm>
#include <system_error>

#include "core/pause.h"

namespace headrace {
namespace {

// How long the idle scheduler spins before it parks: as long as waking a parked thread takes, so
// that it costs at most as much again, and a caller in a closed loop never waits for a wake-up.
constexpr auto kSpin = std::chrono::microseconds(50);
// After so many waits in a row that were longer it parks at once, until one is short again.
constexpr int kSpinCredit = 4;
// A Job without a deadline takes its turn among equal priorities as if it had this long, so that
// Jobs with deadlines cannot hold it back for ever.
constexpr auto kPatience = std::chrono::seconds(10);
// A Batch this short is run where it came in: handing it over takes the caller's thread as long,
// two wake-ups and the call of an event loop, and then somebody waits for both.
constexpr double kHere_s = 20e-6;
// What close() waits at a time; any.
constexpr auto kCloseSlice = std::chrono::hours(1);

int positive(int value, const char* name) {
  if (value < 1) {
    fail(ErrorKind::kBackendUnavailable, "batcher: got ", name, "=", value,
         ", expected at least 1");
  }
  return value;
}

[[noreturn]] void fail_forked(const char* what) {
  fail(ErrorKind::kBackendUnavailable, "batcher: got ", what,
       " in a process that was forked from the Batcher's, expected a Batcher that was made there");
}

}  // namespace

Batcher::Batcher(BatchRunner& runner, CompletionSink& sink, BatcherOptions options)
    : runner_(runner),
      sink_(sink),
      options_(options),
      spin_(usable_cores() > 1),
      ledger_(options.ledger ? *options.ledger : own_ledger_) {
  positive(options.max_queue, "max_queue");
  batch_sizes_.resize(static_cast<size_t>(positive(options.max_batch, "max_batch")) + 1);
  batch_seconds_.resize(batch_sizes_.size());
  batch_.reserve(static_cast<size_t>(options.max_batch));
  late_.reserve(static_cast<size_t>(options.max_queue));
  swept_.reserve(static_cast<size_t>(options.max_queue));
  try {
    scheduler_ = std::thread([this] { schedule(); });
    sweeper_ = std::thread([this] { sweep(); });
  } catch (const std::system_error& error) {
    {
      std::lock_guard lock(mutex_);
      if (!scheduler_.joinable()) scheduler_ended_ = true;
    }
    close(false);
    fail(ErrorKind::kBackendUnavailable,
         "batcher: got fewer threads than the two it needs: ", error.what());
  }
}

Batcher::~Batcher() {
  close(false);
}

void Batcher::fit(std::span<const CostModel::Sample> samples) {
  if (forked()) return;
  std::lock_guard lock(mutex_);
  cost_.fit(samples);
}

void Batcher::submit(Job& job) {
  enter(job, false);
}

bool Batcher::submit_or_run(Job& job) {
  return enter(job, true);
}

void Batcher::count_refused() {
  if (forked()) return;
  auto now = Clock::now();
  std::lock_guard lock(mutex_);
  offered_.add(now, 1);
  offered_work_.add(now, work_per_job_);
  ++ledger_.refused;
}

// True if the Job was run here, or was found to be too late to.
bool Batcher::enter(Job& job, bool may_run) {
  if (forked()) fail_forked("a Request");
  auto now = Clock::now();
  bool here;
  bool wake;
  bool wake_sweeper;
  {
    std::lock_guard lock(mutex_);
    if (job.deadline == kNoDeadline && options_.slo_s > 0) {
      job.deadline = now + to_duration(options_.slo_s);
    }
    job.due = std::min(job.deadline, now + kPatience);
    job.probe = false;
    offered_.add(now, 1);
    offered_work_.add(now, static_cast<double>(job.work));
    try {
      admit(job, now, contention_.came(job.caller, now));
    } catch (...) {
      ++ledger_.refused;
      throw;
    }
    job.id = next_id_++;
    job.arrival = now;
    job.status = JobStatus::kQueued;
    double work = static_cast<double>(job.work);
    work_per_job_ += (work_per_job_ == 0 ? 1 : 0.05) * (work - work_per_job_);
    queue_.push(&job);
    ++ledger_.accepted;
    ++ledger_.waiting;
    here = may_run && is_short(work, now);
    if (here) pack();
    update_ready();
    wake = parked_ && !busy_;
    wake_sweeper = !here && sweeper_parked_ && job.deadline != kNoDeadline;
  }
  if (here) run_taken();
  if (wake) work_came_.notify_one();
  if (wake_sweeper) sweep_.notify_one();
  return here;
}

// Whether a Job of so much work that has just been queued is alone and soon done.
bool Batcher::is_short(double work, Clock::time_point now) const {
  return !busy_ && queue_.size() == 1 && cost_.known() && cost_.seconds(work) <= kHere_s &&
         now >= here_from_;
}

bool Batcher::cancel(Job& job) {
  if (forked()) return false;
  {
    std::lock_guard lock(mutex_);
    if (job.status != JobStatus::kQueued) return false;
    queue_.remove(&job);
    job.status = JobStatus::kCancelled;
    --ledger_.waiting;
    ++ledger_.cancelled;
    ++cancelling_;
  }
  Job* jobs[] = {&job};
  sink_.completed(jobs);
  std::lock_guard lock(mutex_);
  if (--cancelling_ == 0) quiet_.notify_all();
  return true;
}

void Batcher::close(bool drain) {
  while (!close_within(drain, kCloseSlice)) {
  }
}

bool Batcher::inside() const {
  if (forked()) return false;
  std::lock_guard lock(mutex_);
  return inside_locked();
}

bool Batcher::inside_locked() const {
  auto self = std::this_thread::get_id();
  return (busy_ && running_ == self) || sweeper_.get_id() == self;
}

bool Batcher::close_within(bool drain, Clock::duration wait) {
  if (forked()) return true;
  auto end = Clock::now() + wait;
  std::vector<Job*> dropped;
  {
    std::lock_guard lock(mutex_);
    if (inside_locked()) {
      fail(ErrorKind::kExecution, "got close() from inside a Batch, expected it from outside");
    }
    closing_ = true;
    while (!drain && !queue_.empty()) {
      dropped.push_back(queue_.pop());
      dropped.back()->status = JobStatus::kCancelled;
      --ledger_.waiting;
      ++ledger_.cancelled;
    }
    update_ready();
  }
  work_came_.notify_all();
  for (Job* job : dropped) {
    job->error = ErrorKind::kCancelled;
    job->message = "the Batcher was closed before the Request ran";
  }
  if (!dropped.empty()) sink_.completed(dropped);
  {
    std::unique_lock lock(mutex_);
    if (!quiet_.wait_until(lock, end, [this] { return scheduler_ended_; })) return false;
  }
  {
    std::lock_guard lock(join_mutex_);
    if (scheduler_.joinable()) scheduler_.join();
    {
      std::lock_guard stop(mutex_);
      sweeper_stops_ = true;
    }
    sweep_.notify_one();
    if (sweeper_.joinable()) sweeper_.join();
  }
  std::unique_lock lock(mutex_);
  quiet_.wait(lock, [this] { return cancelling_ == 0; });
  return true;
}

void Batcher::schedule() {
  while (take_batch()) run_taken();
  std::lock_guard lock(mutex_);
  scheduler_ended_ = true;
  quiet_.notify_all();
}

// Waits for work and takes the Engine and a Batch. False when closed and drained.
bool Batcher::take_batch() {
  auto idle = Clock::now();
  if (spin_ && spin_credit_ > 0) spin_for_work();
  std::unique_lock lock(mutex_);
  parked_ = true;
  work_came_.wait(lock, [this] { return !busy_ && (!queue_.empty() || closing_); });
  parked_ = false;
  spin_credit_ = Clock::now() - idle < 2 * kSpin ? kSpinCredit : std::max(0, spin_credit_ - 1);
  if (queue_.empty()) return false;
  pack();
  return true;
}

void Batcher::spin_for_work() const {
  if (ready_.load(std::memory_order_acquire)) return;
  auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 8; ++i) spin_pause();
  } while (!ready_.load(std::memory_order_acquire) && Clock::now() < end);
}

bool Batcher::help(Job& job) {
  if (forked()) return false;
  {
    std::lock_guard lock(mutex_);
    if (busy_ || job.status != JobStatus::kQueued || queue_.front() != &job) return false;
    pack();
  }
  run_taken();
  return true;
}

void Batcher::update_ready() {
  ready_.store(!busy_ && (!queue_.empty() || closing_), std::memory_order_release);
}

BatcherStats Batcher::stats() const {
  if (forked()) fail_forked("stats()");
  auto now = Clock::now();
  std::lock_guard lock(mutex_);
  BatcherStats stats;
  stats.ledger = ledger_;
  stats.batches = batches_;
  stats.batch_sizes = batch_sizes_;
  stats.batch_seconds = batch_seconds_;
  stats.offered_rps = offered_.per_second(now);
  stats.offered_work_per_s = offered_work_.per_second(now);
  stats.utilisation = std::min(1.0, busy_time_.per_second(now));
  stats.queue_delay_s = std::max(delay_.value(now), queue_.oldest_wait_s(now));
  if (ledger_.running > 0) stats.running_s = seconds_between(batch_start_, now);
  stats.queue_delay = queue_delay_;
  stats.compute = compute_;
  stats.cost_fixed_s = cost_.fixed_s();
  stats.cost_per_work_s = cost_.per_work_s();
  measure_capacity(stats);
  return stats;
}

}  // namespace headrace
