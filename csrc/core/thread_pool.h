// Threads that run the inside of one op at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "core/function_ref.h"

namespace headrace {

// A task gets its index and the index of the thread that runs it (0 is the caller).
using Task = FunctionRef<void(int64_t task, int thread)>;

// Fork/join over numbered tasks. Workers spin briefly after a region, so that the next op of the
// same Batch finds them awake, then park. Which thread takes which task is not fixed: tasks must
// write disjoint outputs, and no reduction may depend on the split.
//
// run() may be called from any number of threads: one caller at a time gets the workers, the
// others do their whole region alone instead of waiting, which gives the same bits. So however
// many Plans share a pool, it adds threads() - 1 running threads to those that call.
class ThreadPool {
 public:
  // `threads` counts the caller; 1 makes a pool without workers.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_.load(std::memory_order_relaxed); }
  // Adds workers until there are `threads`; never takes any away. Where no thread can be made,
  // throws Error(kBackendUnavailable) and keeps those there are.
  void grow(int threads);

  // Runs task(0) .. task(tasks - 1) and returns when all are done, on the caller and workers whose
  // index is below `threads`; the others are not woken. If tasks throw, the first exception is
  // rethrown after all have ended. Must not be called from inside a task. The first call after a
  // fork makes the workers anew, and throws as grow() does.
  void run(int64_t tasks, Task task, int threads = std::numeric_limits<int>::max());

  // For the only thread of a process that was forked: makes this a pool without workers, since
  // those it had are in the other process, until they are needed. Nobody else looks at it.
  void leave_workers();

 private:
  ThreadPool() = default;

  struct Region;
  struct Worker {
    std::thread thread;
    std::condition_variable wake;
    bool parked = false;  // under park_mutex_
  };
  void work(Worker& self, int thread);
  bool take_part(int thread);
  void call_workers(int threads);
  static void take_tasks(Region& region, int thread);

  std::deque<Worker> workers_;  // stay where they are; added and counted under busy_
  std::atomic<int> threads_{1};
  std::atomic<int> left_threads_{0};     // what threads() was before a fork, until run() makes them
  std::mutex busy_;                      // held by the caller that has the workers
  std::atomic<uint64_t> generation_{0};  // +1 for every region; workers wait for a change
  std::atomic<Region*> region_{nullptr};  // null once its tasks are all taken
  std::atomic<int> inside_{0};            // workers that may be looking at region_
  std::atomic<bool> stop_{false};
  std::mutex park_mutex_;
};

// The pool that all Plans of this process share, of at least that many threads. It stays usable in
// a process that is forked from this one.
std::shared_ptr<ThreadPool> shared_pool(int threads);

}  // namespace headrace
