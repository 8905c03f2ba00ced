#include <thread>

#include "batcher_bench.h"

namespace headrace {
namespace {

constexpr auto kFar = std::chrono::hours(1);

// Submits Jobs of one caller until one is refused; how many were taken.
int submit_until_refused(Bench& bench, uint64_t caller, Clock::duration in = Clock::duration::max(),
                         int limit = 10000) {
  for (int taken = 0; taken < limit; ++taken) {
    Job& job = bench.job();
    job.caller = caller;
    if (in != Clock::duration::max()) job.deadline = Clock::now() + in;
    try {
      bench.batcher.submit(job);
    } catch (const OverloadedError& error) {
      HR_CHECK(error.retry_after_s() > 0);
      return taken;
    }
  }
  return limit;
}

HR_TEST(batcher_gives_the_whole_queue_to_one_caller) {
  Bench bench({.max_queue = 90});
  bench.occupy();
  HR_CHECK_EQ(submit_until_refused(bench, 0), 90);
}

HR_TEST(batcher_keeps_room_in_the_queue_for_other_callers) {
  Bench bench({.max_queue = 90});
  bench.occupy();
  HR_CHECK_EQ(submit_until_refused(bench, 1, Clock::duration::max(), 1), 1);
  // 60 leave 29 places free, and a 61st would be more than twice those.
  HR_CHECK_EQ(submit_until_refused(bench, 2), 60);
  // Who asked for little still finds a place.
  HR_CHECK_EQ(submit_until_refused(bench, 3, Clock::duration::max(), 8), 8);
  HR_CHECK_EQ(submit_until_refused(bench, 2), 0);
  bench.runner.release();
  bench.batcher.close(true);
  bench.check_balance();
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 2);
}

HR_TEST(batcher_shares_the_time_to_a_deadline) {
  Bench bench({.max_queue = 10000, .max_batch = 100});
  bench.occupy();
  // Of 1 ms each and 100 ms a Batch; those of the first caller are in no hurry.
  bench.job().caller = 1;
  bench.jobs.back().deadline = Clock::now() + kFar;
  bench.batcher.submit(bench.jobs.back());
  fit_linear(bench.batcher, 0.1, 0.001);
  int greedy = submit_until_refused(bench, 2, std::chrono::seconds(20));
  fit_linear(bench.batcher, 0.1, 0.001);
  int modest = submit_until_refused(bench, 3, std::chrono::seconds(20), 500);
  // 20 s hold 75 Batches of 100 Jobs; the greedy one gets 2/3 of them.
  HR_CHECK_NEAR(greedy / (7500.0 * 2 / 3), 1.0, 0.03);
  HR_CHECK_EQ(modest, 500);
  HR_CHECK_EQ(submit_until_refused(bench, 2, std::chrono::seconds(20)), 0);
  bench.runner.release();
  bench.batcher.close(false);
  bench.check_balance();
}

HR_TEST(batcher_forgets_that_others_came) {
  Contention contention;
  Clock::time_point now = Clock::now();
  HR_CHECK(!contention.came(1, now));
  HR_CHECK(!contention.came(1, now));
  HR_CHECK(contention.came(2, now));
  HR_CHECK(contention.came(2, now + std::chrono::seconds(9)));
  HR_CHECK(!contention.came(2, now + std::chrono::seconds(11)));
  HR_CHECK(contention.came(1, now + std::chrono::seconds(12)));
}

HR_TEST(batcher_answers_the_expired_while_a_batch_hangs) {
  Bench bench;
  bench.occupy();
  Job& expired = bench.submit(0, milliseconds(20));
  Job& waiting = bench.submit();
  bench.sink.wait_for(1);  // the Engine is still held
  HR_CHECK(expired.status == JobStatus::kExpired);
  HR_CHECK(expired.error == ErrorKind::kDeadlineExceeded);
  HR_CHECK(waiting.status == JobStatus::kQueued);
  bench.check_balance();
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK_EQ(bench.runner.runs_of(expired), 0);
}

HR_TEST(batcher_tells_how_long_a_batch_has_been_running) {
  Bench bench;
  HR_CHECK_EQ(bench.batcher.stats().running_s, 0.0);
  bench.occupy();
  std::this_thread::sleep_for(milliseconds(5));
  HR_CHECK(bench.batcher.stats().running_s >= 0.005);
  bench.runner.release();
  bench.batcher.close(true);
  HR_CHECK_EQ(bench.batcher.stats().running_s, 0.0);
}

}  // namespace
}  // namespace headrace
