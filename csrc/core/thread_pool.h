// Threads that run the inside of one op at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "core/function_ref.h"

namespace headrace {

// A task gets its index and the index of the thread that runs it (0 is the caller).
using Task = FunctionRef<void(int64_t task, int thread)>;

// Fork/join over numbered tasks. Workers spin briefly after a region, so that the next op of the
// same Batch finds them awake, then park. Which thread takes which task is not fixed: tasks must
// write disjoint outputs, and no reduction may depend on the split.
//
// run() may be called from any number of threads: one caller at a time gets the workers, the
// others do their whole region alone instead of waiting, which gives the same bits.
class ThreadPool {
 public:
  // `threads` counts the caller; 1 makes a pool without workers.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs task(0) .. task(tasks - 1) and returns when all are done. If tasks throw, the first
  // exception is rethrown after all have ended. Must not be called from inside a task.
  void run(int64_t tasks, Task task);

 private:
  struct Region;
  void work(int thread);
  static void take_tasks(Region& region, int thread);

  std::vector<std::thread> workers_;
  std::mutex busy_;                       // held by the caller that has the workers
  std::atomic<uint64_t> generation_{0};   // +1 for every region; workers wait for a change
  std::atomic<Region*> region_{nullptr};  // null once its tasks are all taken
  std::atomic<int> inside_{0};            // workers that may be looking at region_
  std::atomic<bool> stop_{false};
  std::mutex park_mutex_;
  std::condition_variable park_;
  int parked_ = 0;  // under park_mutex_
};

}  // namespace headrace
