// What the Batcher schedules, and the two interfaces between it and the rest of the world.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>

#include "core/error.h"

namespace headrace {

using Clock = std::chrono::steady_clock;

inline constexpr Clock::time_point kNoDeadline = Clock::time_point::max();

// Negative if `to` is earlier.
inline double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

enum class JobStatus : uint8_t { kNew, kQueued, kRunning, kOk, kFailed, kExpired, kCancelled };

// Bounded to 30 years: the clock overflows.
inline Clock::duration to_duration(double seconds) {
  std::chrono::duration<double> bounded(seconds < 1e9 ? seconds : 1e9);
  return std::chrono::duration_cast<Clock::duration>(bounded);
}

// One Request on its way through the Batcher. Derive from it to carry inputs and outputs. The
// submitter owns it and keeps it alive and in place from submit() until the sink has been told of
// it; in between, only the Batcher and (while it is kRunning) the runner touch it.
struct Job {
  // Set by the submitter.
  int64_t work = 1;     // its size for the cost model: rows, tokens, ...
  int priority = 0;     // larger goes first
  uint64_t caller = 0;  // whose it is, for fair shares; any hash, 0 for those without a name
  Clock::time_point deadline = kNoDeadline;

  // Set by the Batcher.
  uint64_t id = 0;  // 1, 2, ... in order of admission
  Clock::time_point arrival;
  Clock::time_point due;  // its place among equal priorities; not after the deadline
  bool probe = false;     // admitted to test the cost model, see Batcher::admit
  std::atomic<JobStatus> status{JobStatus::kNew};  // changes under the Batcher's mutex only
  ErrorKind error = ErrorKind::kExecution;  // of kFailed, kExpired and closed-down kCancelled
  std::string message;                      // empty otherwise
};

// Runs a Batch. One call at a time, from the scheduler thread or from one inside help() or
// submit_or_run().
class BatchRunner {
 public:
  virtual ~BatchRunner() = default;
  // Either all Jobs got their outputs, or it throws and none has: then the Batcher splits the
  // Batch to find the culprits.
  virtual void run(std::span<Job* const> jobs) = 0;
};

// Told once per Batch of all Jobs that ended in it, whatever their status, and, before the Batch
// runs, of those that expired while they waited. Calls come from the thread that ran the Batch,
// from one inside cancel() (its one Job) or close() (the Jobs it cancels), or from the sweeper
// (Jobs that expired while a Batch took long), never with a lock held. The Jobs are the submitter's
// again from the call on.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  virtual void completed(std::span<Job* const> jobs) noexcept = 0;
};

}  // namespace headrace
