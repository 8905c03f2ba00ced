#include "batcher/queue.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace headrace {

JobQueue::Entry JobQueue::entry_of(Job* job) {
  return {job->priority, job->due, job->id, job->work, job->deadline, job->caller % kCallers, job};
}

bool JobQueue::before(const Entry& a, const Entry& b) {
  return std::tie(b.priority, a.due, a.id) < std::tie(a.priority, b.due, b.id);
}

void JobQueue::count_in(const Entry& entry) {
  work_ += entry.work;
  Backlog& own = callers_[entry.caller];
  ++own.jobs;
  own.work += entry.work;
}

void JobQueue::count_out(const Entry& entry) {
  work_ -= entry.work;
  Backlog& own = callers_[entry.caller];
  --own.jobs;
  own.work -= entry.work;
}

JobQueue::Ahead JobQueue::ahead_of(const Job& job) const {
  uint64_t caller = job.caller % kCallers;
  Entry newest{job.priority, job.due, std::numeric_limits<uint64_t>::max(), 0, {}, caller, nullptr};
  Ahead ahead{entries_.size(), work_, callers_[caller]};
  // From the back: a new Job nearly always goes last.
  for (auto it = entries_.rbegin(); it != entries_.rend() && before(newest, *it); ++it) {
    --ahead.jobs;
    ahead.work -= it->work;
    if (it->caller == caller) {
      --ahead.own.jobs;
      ahead.own.work -= it->work;
    }
  }
  return ahead;
}

void JobQueue::push(Job* job) {
  Entry entry = entry_of(job);
  if (entries_.empty() || before(entries_.back(), entry)) {
    entries_.push_back(entry);
  } else {
    entries_.insert(std::upper_bound(entries_.begin(), entries_.end(), entry, before), entry);
  }
  count_in(entry);
  earliest_ = std::min(earliest_, job->deadline);
}

Job* JobQueue::pop() {
  Job* job = entries_.front().job;
  count_out(entries_.front());
  entries_.pop_front();
  if (entries_.empty()) earliest_ = kNoDeadline;
  return job;
}

void JobQueue::remove(Job* job) {
  auto place = std::lower_bound(entries_.begin(), entries_.end(), entry_of(job), before);
  count_out(*place);
  entries_.erase(place);
}

void JobQueue::take_expired(Clock::time_point now, FunctionRef<void(Job*)> expired) {
  if (earliest_ > now) return;
  earliest_ = kNoDeadline;
  auto kept = entries_.begin();
  for (const Entry& entry : entries_) {
    if (entry.deadline <= now) {
      count_out(entry);
      expired(entry.job);
    } else {
      earliest_ = std::min(earliest_, entry.deadline);
      *kept++ = entry;
    }
  }
  entries_.erase(kept, entries_.end());
}

double JobQueue::oldest_wait_s(Clock::time_point now) const {
  auto arrival = now;
  for (const Entry& entry : entries_) arrival = std::min(arrival, entry.job->arrival);
  return std::chrono::duration<double>(now - arrival).count();
}

}  // namespace headrace
