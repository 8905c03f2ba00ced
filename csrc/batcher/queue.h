// The Jobs that wait, in the order in which they will run.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "batcher/job.h"
#include "core/function_ref.h"

namespace headrace {

// Sorted by priority, then `due`, then id. Entries carry their keys, so that looking for a place
// or adding up the work ahead never touches a Job. Not thread-safe; the Batcher bounds its length.
//
// Callers are counted by buckets, not by name, so that no flood of invented names grows anything;
// two callers whose hashes meet share one share (stochastic fairness queueing, McKenney 1990).
class JobQueue {
 public:
  static constexpr size_t kCallers = 1024;

  struct Backlog {
    size_t jobs = 0;
    int64_t work = 0;
  };
  // What goes before a new Job, and what of that is its own caller's.
  struct Ahead {
    size_t jobs = 0;
    int64_t work = 0;
    Backlog own;
  };

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  int64_t work() const { return work_; }
  Job* front() const { return entries_.front().job; }

  // All that waits of one caller, whatever its priority.
  const Backlog& backlog_of(uint64_t caller) const { return callers_[caller % kCallers]; }
  Ahead ahead_of(const Job& job) const;
  void push(Job* job);
  Job* pop();
  // The Job must be in the queue.
  void remove(Job* job);
  // Takes out every Job whose deadline is not after `now`, in order.
  void take_expired(Clock::time_point now, FunctionRef<void(Job*)> expired);
  // How long the longest waiting Job has waited; 0 if there is none.
  double oldest_wait_s(Clock::time_point now) const;

 private:
  struct Entry {
    int priority;
    Clock::time_point due;
    uint64_t id;
    int64_t work;
    Clock::time_point deadline;
    uint64_t caller;
    Job* job;
  };
  static Entry entry_of(Job* job);
  static bool before(const Entry& a, const Entry& b);
  void count_in(const Entry& entry);
  void count_out(const Entry& entry);

  std::deque<Entry> entries_;
  std::array<Backlog, kCallers> callers_{};
  int64_t work_ = 0;
  // No deadline in the queue is earlier; saves looking at every entry.
  Clock::time_point earliest_ = kNoDeadline;
};

}  // namespace headrace
