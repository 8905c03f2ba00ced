#include "core/thread_pool.h"

#include <chrono>
#include <exception>

namespace headrace {
namespace {

// How long a worker spins before it parks: longer than the gap between two ops of a Batch,
// shorter than anybody would notice on a power bill.
constexpr auto kSpin = std::chrono::microseconds(100);

// Pauses a caller spends on waiting for the last worker before it offers its core; some 50 us.
constexpr int kJoinSpins = 4096;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::Region {
  Task task;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // written by the one thread that set failed
};

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  {
    std::lock_guard lock(park_mutex_);
    generation_.fetch_add(1);
  }
  park_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_tasks(Region& region, int thread) {
  while (true) {
    int64_t task = region.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= region.tasks) return;
    try {
      region.task(task, thread);
    } catch (...) {
      if (!region.failed.exchange(true)) region.error = std::current_exception();
    }
  }
}

void ThreadPool::run(int64_t tasks, Task task) {
  if (tasks <= 0) return;
  Region region{task, tasks, {}, {}, {}};
  std::unique_lock busy(busy_, std::defer_lock);
  if (tasks == 1 || workers_.empty() || !busy.try_lock()) {
    take_tasks(region, 0);
  } else {
    region_.store(&region);
    bool wake;
    {
      // Under the mutex, so that a worker about to park sees the new generation or is counted.
      std::lock_guard lock(park_mutex_);
      generation_.fetch_add(1);
      wake = parked_ > 0;
    }
    if (wake) park_.notify_all();
    take_tasks(region, 0);
    // The region lives on this stack: close it, then wait for the workers inside. A worker that
    // wakes up late finds it closed, so nobody waits for a thread that is still asleep. Both sides
    // write one variable and then read the other, which needs sequential consistency.
    region_.store(nullptr);
    for (int spins = 0; inside_.load() != 0; ++spins) {
      // A worker that lost its core to another process may be waiting for this one.
      if (spins < kJoinSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }
  if (region.error) std::rethrow_exception(region.error);
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  while (true) {
    auto spin_end = std::chrono::steady_clock::now() + kSpin;
    while (generation_.load(std::memory_order_acquire) == seen) {
      relax();
      if (std::chrono::steady_clock::now() < spin_end) continue;
      std::unique_lock lock(park_mutex_);
      ++parked_;
      park_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      --parked_;
    }
    seen = generation_.load();
    if (stop_) return;
    inside_.fetch_add(1);
    if (Region* region = region_.load()) take_tasks(*region, thread);
    inside_.fetch_sub(1);
  }
}

}  // namespace headrace
