// Jobs that are run on the thread that brings them.
#include <thread>

#include "batcher_bench.h"

namespace headrace {
namespace {

// A Batcher that expects each Job to take 1 us, and 1 us more per unit of work, and that remembers
// on which thread each Batch ran.
struct HereBench : Bench {
  HereBench() {
    runner.body = [this](auto) { ran_on.push_back(std::this_thread::get_id()); };
  }
  // Whatever it has learnt of a slow machine since.
  bool submit_or_run(Job& job) {
    fit_linear(batcher, 1e-6, 1e-6);
    return batcher.submit_or_run(job);
  }

  std::vector<std::thread::id> ran_on;
};

// False if one was handed over.
bool run_short_jobs_here() {
  HereBench bench;
  for (int i = 0; i < 20; ++i) {
    Job& job = bench.job();
    if (!bench.submit_or_run(job)) return false;
    HR_CHECK(job.status == JobStatus::kOk);
    HR_CHECK_EQ(bench.sink.done().size(), static_cast<size_t>(i + 1));
  }
  for (auto thread : bench.ran_on) HR_CHECK(thread == std::this_thread::get_id());
  BatcherStats stats = bench.batcher.stats();
  HR_CHECK_EQ(stats.ledger.ok, 20);
  HR_CHECK_EQ(stats.batch_sizes[1], 20);
  HR_CHECK_EQ(stats.queue_delay.count(), 20);
  HR_CHECK(stats.utilisation > 0);
  bench.check_balance();
  return true;
}

// A thread that is descheduled while it runs one looks like a Job that takes long, after which none
// is run here for a while: hence some attempts.
HR_TEST(batcher_runs_a_short_job_where_it_came_in) {
  bool here = false;
  for (int attempt = 0; attempt < 5 && !here; ++attempt) here = run_short_jobs_here();
  HR_CHECK(here);
}

HR_TEST(batcher_hands_a_long_job_over) {
  HereBench bench;
  HR_CHECK(!bench.submit_or_run(bench.job(1000)));
  bench.sink.wait_for(1);
  HR_CHECK(bench.ran_on[0] != std::this_thread::get_id());
}

HR_TEST(batcher_hands_over_what_it_knows_nothing_about) {
  Bench bench;
  HR_CHECK(!bench.batcher.submit_or_run(bench.job()));
  bench.sink.wait_for(1);
}

// Neither on top of a Batch that runs nor past Jobs that wait, whatever its priority.
HR_TEST(batcher_queues_a_short_job_behind_a_busy_engine) {
  HereBench bench;
  Job& first = bench.occupy();
  Job& waiting = bench.submit();
  Job& urgent = bench.job();
  urgent.priority = 1;
  HR_CHECK(!bench.submit_or_run(urgent));
  HR_CHECK(urgent.status == JobStatus::kQueued);
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(bench.runner.runs() ==
           (std::vector<std::vector<uint64_t>>{{first.id}, {urgent.id, waiting.id}}));
  bench.check_balance();
}

HR_TEST(batcher_admits_short_jobs_as_any_other) {
  HereBench bench;
  Job& past = bench.job();
  past.deadline = Clock::now();
  HR_CHECK_THROWS(bench.submit_or_run(past), Error);
  HR_CHECK(bench.ran_on.empty());
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 1);
  bench.batcher.close(true);
  HR_CHECK_THROWS(bench.submit_or_run(bench.job()), Error);
}

HR_TEST(batcher_tells_what_a_short_job_failed_of) {
  HereBench bench;
  bench.runner.body = [](auto) { fail(ErrorKind::kShapeMismatch, "bad one"); };
  Job& job = bench.job();
  HR_CHECK(bench.submit_or_run(job));
  HR_CHECK(job.status == JobStatus::kFailed);
  HR_CHECK(job.error == ErrorKind::kShapeMismatch);
  HR_CHECK_EQ(bench.batcher.stats().ledger.failed, 1);
}

HR_TEST(batcher_runs_nothing_here_for_a_while_after_a_surprise) {
  HereBench bench;
  bench.runner.body = [](auto) { std::this_thread::sleep_for(milliseconds(5)); };
  HR_CHECK(bench.submit_or_run(bench.job()));
  bench.runner.body = [](auto) {};
  HR_CHECK(!bench.submit_or_run(bench.job()));
  bench.sink.wait_for(2);
}

// The cost model hears nothing of those.
HR_TEST(batcher_runs_nothing_here_for_a_while_after_one_that_failed_late) {
  HereBench bench;
  bench.runner.body = [](auto) {
    std::this_thread::sleep_for(std::chrono::microseconds(700));
    fail(ErrorKind::kExecution, "bad one");
  };
  HR_CHECK(bench.submit_or_run(bench.job()));
  bench.runner.body = [](auto) {};
  HR_CHECK(!bench.submit_or_run(bench.job()));
  bench.sink.wait_for(2);
}

// Threads that bring short Jobs, and others that leave theirs to the scheduler: each runs once. How
// many run here is up to the machine: under a sanitizer, or beside others, a run that takes long
// ends it for a while.
HR_TEST(batcher_runs_each_job_once_wherever_it_came_in) {
  Bench bench({.max_queue = 100000});
  fit_linear(bench.batcher, 1e-6, 1e-6);
  constexpr int kThreads = 4;
  constexpr int kJobs = 1000;
  std::vector<std::deque<Job>> jobs(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kJobs; ++i) {
        if (i % 100 == 0)
          std::this_thread::sleep_for(milliseconds(1));  // so that it is idle at times
        Job& job = jobs[static_cast<size_t>(t)].emplace_back();
        if (t % 2 == 0) {
          bench.batcher.submit(job);
        } else if (bench.batcher.submit_or_run(job)) {
          HR_CHECK(job.status == JobStatus::kOk);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  bench.batcher.close(true);
  HR_CHECK_EQ(bench.sink.done().size(), static_cast<size_t>(kThreads * kJobs));
  size_t run = 0;
  for (const auto& batch : bench.runner.runs()) run += batch.size();
  HR_CHECK_EQ(run, static_cast<size_t>(kThreads * kJobs));
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, kThreads * kJobs);
  bench.check_balance();
}

}  // namespace
}  // namespace headrace
