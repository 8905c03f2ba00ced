// The Jobs that wait, in the order in which they will run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "batcher/job.h"
#include "core/function_ref.h"

namespace headrace {

// Sorted by priority, then `due`, then id. Entries carry their keys, so that looking for a place
// or adding up the work ahead never touches a Job. Not thread-safe; the Batcher bounds its length.
class JobQueue {
 public:
  // What goes before a new Job.
  struct Ahead {
    size_t jobs = 0;
    int64_t work = 0;
  };

  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  int64_t work() const { return work_; }
  Job* front() const { return entries_.front().job; }

  Ahead ahead_of(int priority, Clock::time_point due) const;
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
    Job* job;
  };
  static Entry entry_of(Job* job);
  static bool before(const Entry& a, const Entry& b);

  std::deque<Entry> entries_;
  int64_t work_ = 0;
  // No deadline in the queue is earlier; saves looking at every entry.
  Clock::time_point earliest_ = kNoDeadline;
};

}  // namespace headrace
