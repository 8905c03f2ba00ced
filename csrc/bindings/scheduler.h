// A Batcher as Python has it: with what runs its Batches and what wakes those who wait.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <optional>

#include "batcher/batcher.h"
#include "bindings/ticket.h"
#include "core/pause.h"
#include "runtime/plan.h"

namespace headrace {

// Wakes who waits for the Tickets of a Batch.
class TicketSink : public CompletionSink {
 public:
  void completed(std::span<Job* const> jobs) noexcept override;

  // From arrival to end, of the last Batch's most urgent Request.
  Clock::duration latency() const { return latency_; }

 private:
  std::atomic<Clock::duration> latency_{Clock::duration::zero()};
};

struct SchedulerOptions {
  int max_queue = 1024;
  int max_batch = 64;
  double slo_s = 0;    // 0 for none
  int ledger_fd = -1;  // of the file that keeps the books, taken over; -1 for none
};

// A Batcher with its runner, its sink and the file of its books. Made and let go with the GIL held.
class Scheduler : public std::enable_shared_from_this<Scheduler> {
 public:
  // Runs Batches on a native Plan, without touching Python.
  static std::shared_ptr<Scheduler> of_plan(std::shared_ptr<Plan> plan,
                                            const SchedulerOptions& options);
  // Runs Batches on another backend: calls run_batch(list of dicts) -> list of dicts.
  static std::shared_ptr<Scheduler> of_function(pybind11::object run_batch,
                                                const SchedulerOptions& options);

  Batcher& batcher() { return batcher_; }
  // What Requests are checked against; null where a function runs them.
  const Signature* signature() const { return signature_; }

  // `here`: where it is short, runs it on this thread, with the GIL released.
  void submit(Ticket& ticket, std::optional<double> deadline_ms, int priority, uint64_t caller,
              bool here);

  // How long a waiting caller is to spin before it parks.
  Clock::duration spin() const;

 private:
  Scheduler(std::unique_ptr<BatchRunner> runner, const Signature* signature,
            const SchedulerOptions& options);
  static void drop(Scheduler* scheduler);

  const bool spins_ = usable_cores() > 1;
  std::unique_ptr<BatchRunner> runner_;
  const Signature* signature_;  // the runner's
  std::unique_ptr<LedgerFile> ledger_;
  TicketSink sink_;
  Batcher batcher_;
};

}  // namespace headrace
