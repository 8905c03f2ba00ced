// A Batcher with fake surroundings, for its tests.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "batcher/batcher.h"
#include "check.h"

namespace headrace {

using std::chrono::milliseconds;

// Runs what it is told to; can be held inside run(), so that Jobs gather behind it.
class FakeRunner : public BatchRunner {
 public:
  std::function<void(std::span<Job* const>)> body = [](auto) {};

  void run(std::span<Job* const> jobs) override {
    {
      std::unique_lock lock(mutex_);
      std::vector<uint64_t> ids;
      for (const Job* job : jobs) ids.push_back(job->id);
      runs_.push_back(ids);
      changed_.notify_all();
      changed_.wait(lock, [&] { return !held_; });
    }
    body(jobs);
  }

  void hold() { set_held(true); }
  void release() { set_held(false); }

  void wait_for_runs(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return runs_.size() >= count; });
  }

  std::vector<std::vector<uint64_t>> runs() {
    std::lock_guard lock(mutex_);
    return runs_;
  }

  // How many runs the Job was in.
  int runs_of(const Job& job) {
    int count = 0;
    for (const auto& ids : runs()) count += static_cast<int>(std::ranges::count(ids, job.id));
    return count;
  }

 private:
  void set_held(bool held) {
    std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  std::vector<std::vector<uint64_t>> runs_;
};

class FakeSink : public CompletionSink {
 public:
  void completed(std::span<Job* const> jobs) noexcept override {
    std::lock_guard lock(mutex_);
    ++calls_;
    for (Job* job : jobs) done_.push_back(job);
    changed_.notify_all();
  }

  void wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_.size() >= count; });
  }

  std::vector<Job*> done() {
    std::lock_guard lock(mutex_);
    return done_;
  }

  int calls() {
    std::lock_guard lock(mutex_);
    return calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Job*> done_;
  int calls_ = 0;
};

// A Batcher with its surroundings and the Jobs submitted to it, which outlive it.
struct Bench {
  explicit Bench(BatcherOptions options = {}) : batcher(runner, sink, options) {}
  ~Bench() { runner.release(); }

  Job& job(int64_t work = 1) {
    jobs.emplace_back().work = work;
    return jobs.back();
  }
  Job& submit(int priority = 0, Clock::duration in = Clock::duration::max(), int64_t work = 1) {
    Job& job = this->job(work);
    job.priority = priority;
    if (in != Clock::duration::max()) job.deadline = Clock::now() + in;
    batcher.submit(job);
    return job;
  }
  // Submits one Job and holds the Engine in it.
  Job& occupy() {
    runner.hold();
    size_t before = runner.runs().size();
    Job& first = submit();
    runner.wait_for_runs(before + 1);
    return first;
  }
  void check_balance() {
    Ledger ledger = batcher.stats().ledger;
    HR_CHECK_EQ(ledger.accepted, ledger.ok + ledger.failed + ledger.expired + ledger.cancelled +
                                     ledger.waiting + ledger.running);
  }

  std::deque<Job> jobs;
  FakeRunner runner;
  FakeSink sink;
  Batcher batcher;
};

inline std::vector<uint64_t> ids_of(std::initializer_list<const Job*> jobs) {
  std::vector<uint64_t> ids;
  for (const Job* job : jobs) ids.push_back(job->id);
  return ids;
}

inline void fit_linear(Batcher& batcher, double fixed_s, double per_work_s) {
  std::vector<CostModel::Sample> samples;
  for (double work : {1.0, 10.0, 100.0}) samples.push_back({work, fixed_s + per_work_s * work});
  batcher.fit(samples);
}

}  // namespace headrace
