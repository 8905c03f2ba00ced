#include "core/figures.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/pause.h"
#include "core/thread_pool.h"

namespace headrace {
namespace {

constexpr int kRegions = 301;      // odd, for a median
constexpr int kRegionsFirst = 50;  // not counted: the workers are still being started
constexpr int kCopies = 5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double fork_join_seconds(int threads) {
  ThreadPool pool(threads);
  std::vector<double> times;
  times.reserve(kRegions);
  for (int i = 0; i < kRegionsFirst + kRegions; ++i) {
    // Without the wait, the caller would have done all tasks before a worker has looked.
    std::atomic<int> begun{0};
    auto start = std::chrono::steady_clock::now();
    pool.run(threads, [&](int64_t, int) {
      begun.fetch_add(1, std::memory_order_relaxed);
      while (begun.load(std::memory_order_relaxed) < threads) spin_pause();
    });
    if (i >= kRegionsFirst) times.push_back(seconds_since(start));
  }
  auto median = times.begin() + kRegions / 2;
  std::nth_element(times.begin(), median, times.end());
  return *median;
}

double copy_bytes_per_second(int threads, int64_t bytes) {
  ThreadPool pool(threads);
  int64_t each = std::max<int64_t>(1, bytes / threads);
  // Written before the clock starts: the first touch of a page is the kernel's time.
  std::vector<std::vector<char>> from(static_cast<size_t>(threads));
  std::vector<std::vector<char>> to(from.size());
  pool.run(threads, [&](int64_t task, int) {
    from[static_cast<size_t>(task)].assign(static_cast<size_t>(each), 1);
    to[static_cast<size_t>(task)].assign(static_cast<size_t>(each), 2);
  });
  double best = 0;
  for (int i = 0; i < kCopies; ++i) {
    auto start = std::chrono::steady_clock::now();
    pool.run(threads, [&](int64_t task, int) {
      auto place = static_cast<size_t>(task);
      std::memcpy(to[place].data(), from[place].data(), static_cast<size_t>(each));
    });
    best = std::max(best, 2.0 * static_cast<double>(each * threads) / seconds_since(start));
  }
  return best;
}

}  // namespace headrace
