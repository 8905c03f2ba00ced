#include "core/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <system_error>

#include "core/error.h"
#include "core/pause.h"

namespace headrace {
namespace {

// How long a worker spins before it parks: longer than the gap between two ops of a Batch,
// shorter than anybody would notice on a power bill.
constexpr auto kSpin = std::chrono::microseconds(100);

// Pauses a caller spends on waiting for the last worker before it offers its core; some 50 us.
constexpr int kJoinSpins = 4096;

}  // namespace

struct ThreadPool::Region {
  Task task;
  int64_t tasks;
  int threads;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // written by the one thread that set failed
};

// Delegates, so that the destructor ends the workers there are where another one cannot be made.
ThreadPool::ThreadPool(int threads) : ThreadPool() {
  grow(threads);
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  call_workers(threads());
  for (Worker& worker : workers_) worker.thread.join();
}

void ThreadPool::grow(int threads) {
  if (threads <= this->threads()) return;
  std::lock_guard busy(busy_);
  for (int index = this->threads(); index < threads; ++index) {
    Worker& worker = workers_.emplace_back();
    try {
      worker.thread = std::thread([this, &worker, index] { work(worker, index); });
    } catch (const std::system_error& error) {
      workers_.pop_back();
      fail(ErrorKind::kBackendUnavailable, "thread pool: got ", index, " of ", threads,
           " threads, then: ", error.what());
    }
    threads_.store(index + 1, std::memory_order_relaxed);
  }
}

void ThreadPool::leave_workers() {
  int threads = std::max(this->threads(), left_threads_.load());
  // In its place, without an end of the old one: that would join threads, and wait for those that
  // wait on its condition variables. What its workers' list holds of the heap stays there.
  auto* pool = new (this) ThreadPool;
  if (threads > 1) pool->left_threads_ = threads;
}

// Starts a new generation and wakes those of the first threads that are parked.
void ThreadPool::call_workers(int threads) {
  // Under the mutex, so that a worker about to park sees the new generation or is woken.
  std::lock_guard lock(park_mutex_);
  generation_.fetch_add(1);
  for (int index = 1; index < threads; ++index) {
    Worker& worker = workers_[static_cast<size_t>(index - 1)];
    if (!worker.parked) continue;
    worker.parked = false;
    worker.wake.notify_one();
  }
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

void ThreadPool::run(int64_t tasks, Task task, int threads) {
  if (tasks <= 0) return;
  if (int left = left_threads_.load(std::memory_order_relaxed); left > 0) {
    grow(left);
    left_threads_ = 0;
  }
  threads = std::min(threads, this->threads());
  Region region{task, tasks, threads, {}, {}, {}};
  std::unique_lock busy(busy_, std::defer_lock);
  if (tasks == 1 || threads <= 1 || !busy.try_lock()) {
    take_tasks(region, 0);
  } else {
    region_.store(&region);
    call_workers(threads);
    take_tasks(region, 0);
    // The region lives on this stack: close it, then wait for the workers inside. A worker that
    // wakes up late finds it closed, so nobody waits for a thread that is still asleep. Both sides
    // write one variable and then read the other, which needs sequential consistency.
    region_.store(nullptr);
    for (int spins = 0; inside_.load() != 0; ++spins) {
      // A worker that lost its core to another process may be waiting for this one.
      if (spins < kJoinSpins) {
        spin_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  if (region.error) std::rethrow_exception(region.error);
}

// Takes tasks of the region there is, if it wants this thread.
bool ThreadPool::take_part(int thread) {
  inside_.fetch_add(1);
  Region* region = region_.load();
  bool wanted = region != nullptr && thread < region->threads;
  if (wanted) take_tasks(*region, thread);
  inside_.fetch_sub(1);
  return wanted;
}

void ThreadPool::work(Worker& self, int thread) {
  uint64_t seen = 0;
  auto spin_end = std::chrono::steady_clock::now() + kSpin;
  while (true) {
    if (uint64_t now = generation_.load(std::memory_order_acquire); now != seen) {
      seen = now;
      if (stop_) return;
      if (take_part(thread)) spin_end = std::chrono::steady_clock::now() + kSpin;
      continue;
    }
    spin_pause();
    if (std::chrono::steady_clock::now() < spin_end) continue;
    std::unique_lock lock(park_mutex_);
    if (generation_.load(std::memory_order_acquire) != seen) continue;
    self.parked = true;
    self.wake.wait(lock, [&] { return !self.parked; });
    spin_end = std::chrono::steady_clock::now() + kSpin;
  }
}

namespace {

struct Shared {
  std::mutex mutex;
  std::weak_ptr<ThreadPool> pool;
};

// Leaked on purpose: a process may fork while it ends.
Shared& shared() {
  static auto* shared = new Shared;
  return *shared;
}

// Forks hold the mutex, so that a child finds the pool whole.
void register_forks() {
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { shared().mutex.lock(); }, [] { shared().mutex.unlock(); },
                     [] {
                       if (std::shared_ptr<ThreadPool> pool = shared().pool.lock())
                         pool->leave_workers();
                       shared().mutex.unlock();
                     });
}

}  // namespace

std::shared_ptr<ThreadPool> shared_pool(int threads) {
  register_forks();
  std::lock_guard lock(shared().mutex);
  std::shared_ptr<ThreadPool> pool = shared().pool.lock();
  if (!pool) shared().pool = pool = std::make_shared<ThreadPool>(threads);
  pool->grow(threads);
  return pool;
}

}  // namespace headrace
