// The scheduler in front of an Engine: admits, orders, forms Batches, completes.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "batcher/admission.h"
#include "batcher/contention.h"
#include "batcher/cost_model.h"
#include "batcher/job.h"
#include "batcher/ledger.h"
#include "batcher/meters.h"
#include "batcher/queue.h"
#include "core/fork.h"

namespace headrace {

struct BatcherOptions {
  int max_queue = 1024;      // Jobs waiting; one more is refused
  int max_batch = 64;        // Jobs per Batch
  double slo_s = 0;          // the deadline of Jobs that bring none; 0 for no deadline
  Ledger* ledger = nullptr;  // where to keep the books, borrowed; null for inside
};

struct BatcherStats {
  Ledger ledger;
  int64_t batches = 0;                // that ran as one, or were split after a failure
  std::vector<int64_t> batch_sizes;   // [n]: Batches of n Jobs
  std::vector<double> batch_seconds;  // [n]: how long all of those ran together
  double offered_rps = 0;             // arrivals, refused ones included
  double offered_work_per_s = 0;
  double capacity_rps = 0;  // sustainable at full Batches, by the cost model; 0 while unknown
  double capacity_work_per_s = 0;
  double utilisation = 0;    // share of recent time in which the Engine ran
  double queue_delay_s = 0;  // of recent Jobs, or of the longest waiting one if that is more
  double running_s = 0;      // how long the Batch that runs has been running; 0 if none does
  DurationHistogram queue_delay;
  DurationHistogram compute;  // per Batch
  double cost_fixed_s = 0;    // the cost model: fixed + per_work * work
  double cost_per_work_s = 0;
};

// Work-conserving: an idle Engine takes whatever waits, at once; while it is busy, Jobs gather by
// themselves. One scheduler thread forms and runs the Batches, one at a time; a thread that waits
// for its Job may lend a hand, and one whose Job is short may run it itself. A second thread sweeps
// out Jobs whose deadline passes while a Batch takes long. All methods are thread-safe.
//
// A process that is forked from this one has none of these threads. There the Batcher can only be
// left where it is: it takes no Jobs, knows of no end, close() returns at once, and it must not be
// destroyed, which waits for threads that wait.
//
// Callers share fairly: while more than one wants the Engine, none is admitted beyond its share of
// the backlog, so that whoever asks for little gets all of it however much another asks for.
class Batcher {
 public:
  // Runner and sink are borrowed and must outlive the Batcher. Throws Error(kBackendUnavailable)
  // where no thread can be made.
  Batcher(BatchRunner& runner, CompletionSink& sink, BatcherOptions options);
  // Like close(false).
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Teaches the cost model from warm-up runs.
  void fit(std::span<const CostModel::Sample> samples);

  // Takes the Job, or throws and leaves it with the caller: OverloadedError if there is no room,
  // its caller has had its share or the Job could not be done by its deadline,
  // Error(kDeadlineExceeded) if that has passed already, Error(kBackendUnavailable) once closed or
  // in a forked process.
  void submit(Job& job);

  // As submit(), for a thread with other things to do, such as an event loop's: where the Engine is
  // idle, nothing else waits and the Job is estimated to be done sooner than it could be handed
  // over, runs it on this thread. True if it has ended; the sink was told.
  bool submit_or_run(Job& job);

  // Enters one in the books that its submitter refused, before it was a Job.
  void count_refused();

  // For a thread that is about to wait for its Job: if the Engine is idle and the Job is the next
  // to run, runs its Batch on this thread, as the scheduler would have done, and returns true.
  // Saves two thread switches.
  bool help(Job& job);

  // Takes a Job that still waits out of the queue and tells the sink, before it returns. False if
  // it runs or has ended.
  bool cancel(Job& job);

  // Refuses new Jobs, runs those that wait (drain) or cancels them, and returns when the Engine is
  // idle and the sink has been told of every Job. Not to be called from inside a runner, or a sink
  // that was told of a Batch or of expired Jobs: throws Error(kExecution) there.
  void close(bool drain);
  // As close(), but waits no longer than that: false if it has to be called again.
  bool close_within(bool drain, Clock::duration wait);

  // Whether this thread runs a Batch or tells of expired Jobs, where close() throws.
  bool inside() const;
  // Whether this process was forked from the Batcher's.
  bool forked() const { return forks() != forks_; }

  // Throws Error(kBackendUnavailable) in a forked process.
  BatcherStats stats() const;

 private:
  // The thread that has the Engine: the scheduler, or one inside help() or submit_or_run().
  void schedule();
  bool take_batch();
  void spin_for_work() const;
  bool enter(Job& job, bool may_run);
  void run_taken();
  void run_batch();
  bool try_run(std::span<Job*> jobs);
  void split(std::span<Job*> jobs);
  void end(std::span<Job* const> jobs, JobStatus status);
  void sweep();
  void tell_expired(std::span<Job* const> jobs, Clock::time_point now);

  // Under the mutex.
  bool inside_locked() const;
  void pack();
  void dispatch(Clock::time_point now);
  bool too_late(const Job& job, Clock::time_point now) const;
  void note_time(int64_t work, double seconds, bool learnt, Clock::time_point now);
  void update_ready();
  bool is_short(double work, Clock::time_point now) const;
  void note_surprise(double seconds, bool learnt, Clock::time_point now);
  void space_probes(double seconds, bool learnt, Clock::time_point now);
  void admit(Job& job, Clock::time_point now, bool contended);
  void check_share(const Job& job, const JobQueue::Ahead& ahead, double backlog_s,
                   Clock::time_point now) const;
  void count_expired(std::span<Job* const> jobs);
  double seconds_of(size_t jobs, int64_t work) const;
  double work_within(double seconds) const;
  double running_s(Clock::time_point now) const;
  void measure_capacity(BatcherStats& stats) const;

  BatchRunner& runner_;
  CompletionSink& sink_;
  const BatcherOptions options_;
  const bool spin_;  // whether another core can bring work meanwhile
  const int forks_ = forks();

  mutable std::mutex mutex_;  // guards everything down to compute_
  std::condition_variable work_came_;
  JobQueue queue_;
  CostModel cost_;
  Overrun overrun_;
  Ledger own_ledger_;
  Ledger& ledger_;
  uint64_t next_id_ = 1;
  bool parked_ = false;
  bool busy_ = false;        // a thread has the Engine: batch_ and late_ are its own
  std::thread::id running_;  // which one
  int cancelling_ = 0;       // threads inside cancel() that have yet to tell the sink
  std::condition_variable quiet_;
  bool closing_ = false;
  Clock::time_point batch_start_{};  // of the running Batch, else of the last one
  double batch_estimate_s_ = 0;
  Clock::time_point here_from_{};  // before it, no Job is run where it came in
  int64_t running_work_ = 0;       // of the running Batch, and by caller
  std::array<int64_t, JobQueue::kCallers> running_work_of_{};
  int refused_idle_ = 0;      // Jobs in a row that an idle Engine was estimated to be too slow for
  double probe_spacing_ = 2;  // see admit()
  double probe_ratio_ = 1;    // how long the last probe took, over its estimate
  Clock::time_point probed_{};  // when the last probe ended
  Contention contention_;
  RateMeter offered_;
  RateMeter offered_work_;
  RateMeter busy_time_;
  FadingMean delay_;
  double work_per_job_ = 0;
  int64_t batches_ = 0;
  std::vector<int64_t> batch_sizes_;
  std::vector<double> batch_seconds_;
  DurationHistogram queue_delay_;
  DurationHistogram compute_;

  // Whether there is work and nobody at it. The spinning scheduler reads it without the mutex.
  std::atomic<bool> ready_{false};

  // Sized once.
  std::vector<Job*> batch_;
  std::vector<Job*> late_;
  std::vector<Job*> swept_;  // the sweeper's own

  int spin_credit_ = 0;  // the scheduler thread's own
  std::condition_variable sweep_;
  bool sweeper_parked_ = false;  // under the mutex, as is the next
  bool sweeper_stops_ = false;
  bool scheduler_ended_ = false;  // under the mutex too: quiet_ tells
  std::mutex join_mutex_;
  std::thread scheduler_;
  std::thread sweeper_;
};

}  // namespace headrace
