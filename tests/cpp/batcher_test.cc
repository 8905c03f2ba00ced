#include <random>
#include <thread>

#include "batcher_bench.h"

namespace headrace {
namespace {

HR_TEST(batcher_runs_at_once_when_idle_and_gathers_while_busy) {
  Bench bench({.max_batch = 4});
  bench.occupy();
  for (int i = 0; i < 6; ++i) bench.submit();
  bench.runner.release();
  bench.sink.wait_for(7);
  std::vector<size_t> sizes;
  for (const auto& run : bench.runner.runs()) sizes.push_back(run.size());
  HR_CHECK(sizes == (std::vector<size_t>{1, 4, 2}));
  HR_CHECK_EQ(bench.sink.calls(), 3);
  BatcherStats stats = bench.batcher.stats();
  HR_CHECK_EQ(stats.batches, 3);
  HR_CHECK_EQ(stats.batch_sizes[4], 1);
  HR_CHECK_EQ(stats.ledger.ok, 7);
  bench.check_balance();
}

HR_TEST(batcher_orders_by_priority_then_deadline_then_arrival) {
  Bench bench({.max_batch = 1});
  Job& first = bench.occupy();
  Job& relaxed = bench.submit();
  Job& late = bench.submit(0, std::chrono::seconds(9));
  Job& early = bench.submit(0, std::chrono::seconds(5));
  Job& urgent = bench.submit(1);
  Job& relaxed_too = bench.submit();
  bench.runner.release();
  bench.sink.wait_for(6);
  std::vector<uint64_t> order;
  for (const auto& run : bench.runner.runs()) order.push_back(run[0]);
  HR_CHECK(order == ids_of({&first, &urgent, &early, &late, &relaxed, &relaxed_too}));
}

HR_TEST(batcher_refuses_when_full) {
  Bench bench({.max_queue = 2});
  bench.occupy();
  bench.submit();
  bench.submit();
  Job& refused = bench.job();
  double retry_s = 0;
  try {
    bench.batcher.submit(refused);
  } catch (const OverloadedError& error) {
    retry_s = error.retry_after_s();
  }
  HR_CHECK(retry_s > 0);
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 1);
  HR_CHECK_EQ(bench.batcher.stats().ledger.accepted, 3);
  bench.check_balance();
}

HR_TEST(batcher_refuses_what_cannot_meet_its_deadline) {
  Bench bench;
  fit_linear(bench.batcher, 0.010, 0.010);
  HR_CHECK_THROWS(bench.submit(0, milliseconds(15)), OverloadedError);  // 20 ms alone
  bench.submit(0, milliseconds(60000));
  bench.sink.wait_for(1);
  // Behind 100 ms of backlog, 50 ms are too few for what takes 20 ms. It would fit at the head.
  fit_linear(bench.batcher, 0.010, 0.010);
  bench.occupy();
  bench.submit(0, std::chrono::seconds(5), 10);
  HR_CHECK_THROWS(bench.submit(-1, milliseconds(50)), OverloadedError);
  bench.submit(0, std::chrono::seconds(2));
  bench.runner.release();
  bench.sink.wait_for(4);
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 2);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 4);
  for (const Job& job : bench.jobs) {
    HR_CHECK_EQ(bench.runner.runs_of(job), job.status == JobStatus::kOk ? 1 : 0);
  }
}

HR_TEST(batcher_refuses_a_deadline_that_has_passed) {
  Bench bench;
  ErrorKind kind = ErrorKind::kExecution;
  try {
    bench.submit(0, milliseconds(-1));
  } catch (const Error& error) {
    kind = error.kind();
  }
  HR_CHECK(kind == ErrorKind::kDeadlineExceeded);
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 1);
}

HR_TEST(batcher_never_computes_the_expired) {
  Bench bench;
  bench.occupy();
  Job& expired = bench.submit(-1, milliseconds(5));
  Job& good = bench.submit();
  std::this_thread::sleep_for(milliseconds(10));
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(expired.status == JobStatus::kExpired);
  HR_CHECK(expired.error == ErrorKind::kDeadlineExceeded);
  HR_CHECK(good.status == JobStatus::kOk);
  HR_CHECK_EQ(bench.runner.runs_of(expired), 0);
  HR_CHECK_EQ(bench.batcher.stats().ledger.expired, 1);
  bench.check_balance();
}

HR_TEST(batcher_gives_jobs_its_slo_as_deadline) {
  Bench bench({.slo_s = 0.005});
  bench.occupy();
  Job& expired = bench.submit();
  Job& own = bench.submit(0, std::chrono::seconds(60));
  std::this_thread::sleep_for(milliseconds(10));
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(expired.status == JobStatus::kExpired);
  HR_CHECK(own.status == JobStatus::kOk);
}

HR_TEST(batcher_cancels_only_what_waits) {
  Bench bench;
  Job& running = bench.occupy();
  Job& waiting = bench.submit();
  HR_CHECK(!bench.batcher.cancel(running));
  HR_CHECK(bench.batcher.cancel(waiting));
  HR_CHECK(!bench.batcher.cancel(waiting));
  HR_CHECK_EQ(bench.sink.done().size(), 1u);  // told at once, not after the running Batch
  HR_CHECK_EQ(bench.batcher.stats().ledger.waiting, 0);
  bench.check_balance();
  bench.runner.release();
  bench.sink.wait_for(2);
  HR_CHECK(!bench.batcher.cancel(running));
  HR_CHECK_EQ(bench.runner.runs_of(waiting), 0);
  HR_CHECK_EQ(bench.batcher.stats().ledger.cancelled, 1);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 1);
}

HR_TEST(batcher_splits_a_failed_batch_down_to_the_culprits) {
  Bench bench;
  bench.runner.body = [](std::span<Job* const> jobs) {
    for (const Job* job : jobs) {
      if (job->work == 13) fail(ErrorKind::kShapeMismatch, "bad one: ", job->id);
    }
  };
  bench.occupy();
  for (int i = 0; i < 30; ++i) bench.submit(0, Clock::duration::max(), i % 10 == 7 ? 13 : 1);
  bench.runner.release();
  bench.sink.wait_for(31);
  HR_CHECK_EQ(bench.sink.calls(), 2);
  for (const Job& job : bench.jobs) {
    bool bad = job.work == 13;
    HR_CHECK(job.status == (bad ? JobStatus::kFailed : JobStatus::kOk));
    HR_CHECK_EQ(job.message, bad ? "bad one: " + std::to_string(job.id) : "");
    if (bad) HR_CHECK(job.error == ErrorKind::kShapeMismatch);
  }
  HR_CHECK_EQ(bench.batcher.stats().ledger.failed, 3);
  HR_CHECK_EQ(bench.batcher.stats().batches, 2);
  bench.check_balance();
}

HR_TEST(batcher_survives_any_exception) {
  Bench bench;
  bench.runner.body = [](std::span<Job* const>) { throw 42; };
  Job& job = bench.submit();
  bench.sink.wait_for(1);
  HR_CHECK(job.status == JobStatus::kFailed);
  HR_CHECK(!job.message.empty());
  bench.runner.body = [](std::span<Job* const>) {};
  HR_CHECK_EQ(bench.submit().id, 2u);
  bench.sink.wait_for(2);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 1);
}

HR_TEST(batcher_stops_rerunning_what_expires_during_a_split) {
  Bench bench;
  bench.runner.body = [](std::span<Job* const> jobs) {
    if (jobs.size() > 1) {
      std::this_thread::sleep_for(milliseconds(20));
      throw std::runtime_error("no");
    }
  };
  bench.occupy();
  Job& expires = bench.submit(0, milliseconds(15));
  Job& stays = bench.submit();
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(expires.status == JobStatus::kExpired);
  HR_CHECK(stays.status == JobStatus::kOk);
  bench.check_balance();
}

HR_TEST(batcher_close_drains) {
  Bench bench;
  bench.occupy();
  for (int i = 0; i < 5; ++i) bench.submit();
  std::thread closer([&] { bench.batcher.close(true); });
  std::thread closer_too([&] { bench.batcher.close(true); });
  std::this_thread::sleep_for(milliseconds(2));
  bench.runner.release();
  closer.join();
  closer_too.join();
  HR_CHECK_EQ(bench.sink.done().size(), 6u);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 6);
  HR_CHECK_THROWS(bench.submit(), Error);
  HR_CHECK_EQ(bench.batcher.stats().ledger.refused, 1);
  bench.check_balance();
}

HR_TEST(batcher_close_without_drain_cancels) {
  Bench bench;
  Job& running = bench.occupy();
  Job& waiting = bench.submit();
  std::thread closer([&] { bench.batcher.close(false); });
  bench.sink.wait_for(1);
  HR_CHECK(waiting.status == JobStatus::kCancelled);
  HR_CHECK(!waiting.message.empty());
  bench.runner.release();
  closer.join();
  HR_CHECK(running.status == JobStatus::kOk);
  HR_CHECK_EQ(bench.sink.done().size(), 2u);
  bench.check_balance();
}

HR_TEST(batcher_lets_a_waiting_thread_run_the_next_batch) {
  Bench bench;
  Job& running = bench.occupy();
  Job& next = bench.submit();
  Job& last = bench.submit(-1);
  HR_CHECK(!bench.batcher.help(running));
  HR_CHECK(!bench.batcher.help(next));  // the Engine is busy
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(!bench.batcher.help(last));
  // Whoever is first, the helper or the scheduler, each Job runs once and the Batcher goes on.
  std::vector<std::thread::id> ran_on;
  bench.runner.body = [&](auto) { ran_on.push_back(std::this_thread::get_id()); };
  int helped = 0;
  for (int i = 0; i < 2000; ++i) {
    if (i % 100 == 0) std::this_thread::sleep_for(milliseconds(1));
    Job& job = bench.submit();
    if (bench.batcher.help(job)) {
      ++helped;
      HR_CHECK(ran_on.back() == std::this_thread::get_id());
      HR_CHECK(job.status == JobStatus::kOk);
    } else {
      bench.sink.wait_for(static_cast<size_t>(i) + 4);
    }
  }
  HR_CHECK(helped > 0);
  HR_CHECK_EQ(bench.batcher.stats().ledger.ok, 2003);
  bench.check_balance();
}

HR_TEST(batcher_refuses_to_close_itself) {
  Bench bench;
  bool refused = false;
  bench.runner.body = [&](std::span<Job* const>) {
    try {
      bench.batcher.close(true);
    } catch (const Error&) {
      refused = true;
    }
  };
  bench.submit();
  bench.sink.wait_for(1);
  bench.batcher.close(true);
  HR_CHECK(refused);
}

HR_TEST(batcher_does_not_compute_what_would_come_too_late) {
  Bench bench;
  bench.occupy();
  Job& late = bench.submit(0, std::chrono::seconds(2));
  Job& early = bench.submit(0, std::chrono::seconds(100));
  fit_linear(bench.batcher, 0, 10);
  bench.runner.release();
  bench.sink.wait_for(3);
  HR_CHECK(late.status == JobStatus::kExpired);
  HR_CHECK(early.status == JobStatus::kOk);
  HR_CHECK_EQ(bench.runner.runs_of(late), 0);
}

HR_TEST(batcher_puts_an_estimate_that_refuses_all_to_the_test) {
  Bench bench;
  fit_linear(bench.batcher, 0.001, 0);
  bench.submit();
  bench.sink.wait_for(1);
  fit_linear(bench.batcher, 0.02, 0);  // far too much
  int refused = 0;
  bool answered = false;
  // A probe may itself expire where the machine is busy: then there is another one.
  for (size_t probes = 0; probes < 5 && !answered;) {
    try {
      Job& probe = bench.submit(0, milliseconds(15));
      ++probes;
      bench.sink.wait_for(1 + probes);
      answered = probe.status == JobStatus::kOk;
    } catch (const OverloadedError&) {
      ++refused;
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
  HR_CHECK(answered);
  HR_CHECK(refused >= 2);
  HR_CHECK(bench.batcher.stats().cost_fixed_s < 0.02);
}

HR_TEST(batcher_soon_forgets_that_an_idle_engine_was_slow) {
  Bench bench;
  int slow = 3;
  bench.runner.body = [&](auto) {
    if (slow-- > 0) std::this_thread::sleep_for(milliseconds(40));
  };
  fit_linear(bench.batcher, 0.001, 0);
  for (size_t i = 1; i <= 3; ++i) {
    bench.submit();
    bench.sink.wait_for(i);
  }
  HR_CHECK(bench.batcher.stats().cost_fixed_s > 0.03);
  size_t answered = 0;
  int refused = 0;
  while (answered < 6 && refused < 1000) {
    try {
      bench.submit(0, milliseconds(20));
      bench.sink.wait_for(3 + ++answered);
    } catch (const OverloadedError&) {
      ++refused;
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
  HR_CHECK(refused < 200);  // as long as one slow Batch, and a few between the probes
}

HR_TEST(batcher_does_not_flood_a_slow_engine_with_probes) {
  Bench bench;
  bench.runner.body = [](auto) { std::this_thread::sleep_for(milliseconds(20)); };
  fit_linear(bench.batcher, 0.02, 0);
  double retry_s = 0;
  auto start = Clock::now();
  while (Clock::now() - start < milliseconds(600)) {
    try {
      bench.submit(0, milliseconds(15));
    } catch (const OverloadedError& error) {
      retry_s = std::max(retry_s, error.retry_after_s());
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  // Four; every second time, where nothing makes them rare, there would be 15.
  size_t probes = bench.runner.runs().size();
  HR_CHECK(probes >= 1);
  HR_CHECK(probes <= 10);
  HR_CHECK(retry_s > 0.05);  // until the next one, far longer than a Batch
}

// Requests that never can be in time must not be probed as often as those beside them are short.
HR_TEST(batcher_does_not_spend_a_light_callers_time_on_probes_for_a_heavy_one) {
  constexpr int64_t kHeavy = 1000;
  Bench bench;
  std::atomic<int> heavy{0};
  bench.runner.body = [&](std::span<Job* const> jobs) {
    bool is_heavy = std::ranges::any_of(jobs, [](const Job* job) { return job->work >= kHeavy; });
    heavy += is_heavy ? 1 : 0;
    std::this_thread::sleep_for(milliseconds(is_heavy ? 62 : 2));
  };
  fit_linear(bench.batcher, 0.002, 0.06 / kHeavy);
  auto start = Clock::now();
  for (int i = 0; Clock::now() - start < milliseconds(900); ++i) {
    for (int64_t work : {kHeavy, int64_t{1}}) {
      if (work == 1 && i % 60 != 0) continue;
      try {
        bench.submit(0, milliseconds(30), work);
      } catch (const OverloadedError&) {
      }
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  // At 0, 0.3 and 0.8 s; by the light ones' time it would be one after the other.
  HR_CHECK(heavy >= 1);
  HR_CHECK(heavy <= 5);
}

// Three times more is offered than the Engine can do: it stays busy, and nearly all it accepts is
// answered in time.
HR_TEST(batcher_keeps_goodput_under_overload) {
  constexpr double kFixed_s = 2e-3, kPer_s = 0.5e-3;
  Bench bench({.max_batch = 16, .slo_s = 0.06});
  std::atomic<int> in_time{0};
  bench.runner.body = [&](std::span<Job* const> jobs) {
    auto seconds = std::chrono::duration<double>(kFixed_s + kPer_s * double(jobs.size()));
    std::this_thread::sleep_for(seconds);
    auto now = Clock::now();
    for (const Job* job : jobs) in_time += now <= job->deadline + milliseconds(5) ? 1 : 0;
  };
  fit_linear(bench.batcher, kFixed_s, kPer_s);
  auto start = Clock::now();
  int64_t sent = 0;
  while (Clock::now() - start < milliseconds(600)) {
    double elapsed_s = std::chrono::duration<double>(Clock::now() - start).count();
    for (; double(sent) < 4800 * elapsed_s; ++sent) {
      try {
        bench.submit();
      } catch (const OverloadedError&) {
      }
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  bench.batcher.close(true);
  BatcherStats stats = bench.batcher.stats();
  double capacity = 16 / (kFixed_s + 16 * kPer_s);
  std::cout << "  overload: sent " << sent << ", ok " << stats.ledger.ok << ", in time " << in_time
            << ", expired " << stats.ledger.expired << ", capacity in that time " << capacity * 0.6
            << ", mean batch " << double(stats.ledger.ok) / double(stats.batches) << "\n";
  HR_CHECK(double(stats.ledger.ok) > 0.5 * 0.6 * capacity);
  HR_CHECK(double(in_time) > 0.9 * double(stats.ledger.accepted));
  HR_CHECK(stats.ledger.refused > sent / 3);
  bench.check_balance();
}

HR_TEST(batcher_loses_nothing_under_stress) {
  Bench bench({.max_queue = 64, .max_batch = 8});
  bench.runner.body = [](std::span<Job* const> jobs) {
    for (const Job* job : jobs) {
      if (job->work == 13) throw std::runtime_error("bad");
    }
  };
  constexpr int kThreads = 4, kJobs = 2000;
  std::vector<std::deque<Job>> jobs(kThreads);
  std::atomic<int64_t> accepted{0}, cancelled{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < kJobs; ++i) {
        Job& job = jobs[t].emplace_back();
        job.work = random() % 50 == 0 ? 13 : 1;
        job.priority = static_cast<int>(random() % 3);
        if (random() % 4 == 0) {
          job.deadline = Clock::now() + std::chrono::microseconds(random() % 300);
        }
        try {
          bench.batcher.submit(job);
          ++accepted;
        } catch (const Error&) {
          continue;
        }
        if (random() % 8 == 0 && bench.batcher.cancel(job)) ++cancelled;
        if (random() % 4 == 0) bench.batcher.help(job);
        if (random() % 64 == 0) bench.check_balance();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  bench.batcher.close(true);
  std::vector<Job*> done = bench.sink.done();
  HR_CHECK_EQ(static_cast<int64_t>(done.size()), accepted.load());
  std::ranges::sort(done);
  HR_CHECK(std::ranges::adjacent_find(done) == done.end());
  for (const Job* job : done) {
    HR_CHECK(job->work != 13 || job->status != JobStatus::kOk);
    HR_CHECK(job->work == 13 || job->status != JobStatus::kFailed);
  }
  Ledger ledger = bench.batcher.stats().ledger;
  HR_CHECK_EQ(ledger.accepted, accepted.load());
  HR_CHECK_EQ(ledger.refused, kThreads * kJobs - accepted.load());
  HR_CHECK_EQ(ledger.cancelled, cancelled.load());
  HR_CHECK_EQ(ledger.waiting + ledger.running, 0);
  bench.check_balance();
}

}  // namespace
}  // namespace headrace
