#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/arena.h"
#include "core/figures.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace headrace {
namespace {

HR_TEST(pool_runs_every_task_once) {
  ThreadPool pool(4);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::atomic<int>> hits(17);
    pool.run(17, [&](int64_t task, int thread) {
      HR_CHECK(thread >= 0 && thread < 4);
      ++hits[static_cast<size_t>(task)];
    });
    for (auto& hit : hits) HR_CHECK_EQ(hit.load(), 1);
  }
}

HR_TEST(pool_wakes_parked_workers) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // longer than workers spin
    std::atomic<int> sum{0};
    pool.run(8, [&](int64_t task, int) { sum += static_cast<int>(task); });
    HR_CHECK_EQ(sum.load(), 28);
  }
}

HR_TEST(pool_serves_several_callers) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 500; ++round) {
        pool.run(5, [&](int64_t task, int) { sum += task; });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  HR_CHECK_EQ(sum.load(), 4 * 500 * 10);
}

HR_TEST(pool_keeps_to_the_first_threads_and_leaves_the_others_parked) {
  ThreadPool pool(4);
  for (int round = 0; round < 200; ++round) {
    // Long enough apart, now and then, for workers to park.
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> ran{0};
    std::atomic<int> highest{0};
    int threads = 1 + round % 4;
    pool.run(
        16,
        [&](int64_t, int thread) {
          ++ran;
          int seen = highest;
          while (seen < thread && !highest.compare_exchange_weak(seen, thread)) {
          }
        },
        threads);
    HR_CHECK_EQ(ran.load(), 16);
    HR_CHECK(highest < threads);
  }
}

HR_TEST(plans_of_any_thread_count_share_one_pool) {
  std::shared_ptr<ThreadPool> two = shared_pool(2);
  std::atomic<bool> stop{false};
  std::atomic<int64_t> sum{0};
  // Grows while it runs.
  std::thread caller([&] {
    while (!stop) two->run(4, [&](int64_t task, int) { sum += task; }, 2);
  });
  std::shared_ptr<ThreadPool> four = shared_pool(4);
  HR_CHECK(two == four);
  HR_CHECK_EQ(four->threads(), 4);
  HR_CHECK_EQ(shared_pool(3)->threads(), 4);
  int64_t own = 0;
  for (int round = 0; round < 100; ++round) {
    std::atomic<int64_t> part{0};
    four->run(4, [&](int64_t task, int) { part += task; });
    own += part;
  }
  stop = true;
  caller.join();
  HR_CHECK_EQ(own, int64_t{600});
  HR_CHECK_EQ(sum % 6, int64_t{0});
}

HR_TEST(pool_rethrows_and_stays_usable) {
  ThreadPool pool(2);
  HR_CHECK_THROWS(pool.run(4,
                           [](int64_t task, int) {
                             if (task == 2) throw std::runtime_error("task");
                           }),
                  std::runtime_error);
  std::atomic<int> ran{0};
  pool.run(4, [&](int64_t, int) { ++ran; });
  HR_CHECK_EQ(ran.load(), 4);
}

HR_TEST(arena_reuses_freed_blocks_and_merges_neighbours) {
  Arena arena;
  std::byte* a = arena.allocate(1000);
  std::byte* b = arena.allocate(1000);
  std::byte* c = arena.allocate(1000);
  HR_CHECK_EQ(reinterpret_cast<uintptr_t>(b) % Arena::kAlignment, 0u);
  arena.release(a);
  arena.release(b);
  HR_CHECK(arena.allocate(2000) == a);
  arena.release(a);
  arena.release(c);
  int64_t capacity = arena.capacity_bytes();
  std::byte* all = arena.allocate(capacity);
  HR_CHECK_EQ(arena.capacity_bytes(), capacity);
  arena.release(all);
}

HR_TEST(block_memory_is_used_again_and_kept_up_to_a_bound) {
  const int64_t sizes[] = {100, 70'000, 5 << 20};
  for (int64_t bytes : sizes) {
    std::byte* first;
    {
      Block block(bytes);
      first = block.data();
      HR_CHECK_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
      std::memset(first, 1, static_cast<size_t>(bytes));
      Block moved = std::move(block);
      HR_CHECK(!block && moved.data() == first);
    }
    Block again(bytes), other(bytes);
    HR_CHECK(again.data() == first);
    HR_CHECK(other.data() != first);
    std::memset(other.data(), 2, static_cast<size_t>(bytes));
  }
  {
    std::vector<Block> many;
    for (int i = 0; i < 5; ++i) many.emplace_back(Block::kKeptBytesMax / 4);
  }
  HR_CHECK(Block::kept_bytes() > 0);
  HR_CHECK(Block::kept_bytes() <= Block::kKeptBytesMax);
  {
    Block huge(Block::kKeptBytesMax * 2);
  }
  HR_CHECK(Block::kept_bytes() <= Block::kKeptBytesMax);
}

HR_TEST(arena_settles_on_one_chunk) {
  Arena arena;
  int64_t settled = 0;
  for (int round = 0; round < 6; ++round) {
    std::vector<std::byte*> blocks;
    for (int i = 1; i <= 20; ++i) blocks.push_back(arena.allocate(i * 10000));
    for (size_t i = 0; i < blocks.size(); i += 2) arena.release(blocks[i]);
    for (size_t i = 0; i < blocks.size(); i += 2) blocks[i] = arena.allocate(50000);
    for (std::byte* block : blocks) arena.release(block);
    arena.trim();
    if (round == 3) settled = arena.capacity_bytes();
  }
  HR_CHECK_EQ(arena.capacity_bytes(), settled);
}

HR_TEST(figures_of_the_machine_are_positive_with_one_thread_and_with_several) {
  for (int threads : {1, 3}) {
    double region_s = fork_join_seconds(threads);
    HR_CHECK(region_s > 0 && region_s < 1);
    HR_CHECK(copy_bytes_per_second(threads, int64_t{1} << 20) > 1e6);
  }
  // Less than a byte per thread still copies something.
  HR_CHECK(copy_bytes_per_second(3, 1) > 0);
}

}  // namespace
}  // namespace headrace
