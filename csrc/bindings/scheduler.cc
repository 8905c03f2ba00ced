#include "bindings/scheduler.h"

#include <cmath>
#include <system_error>
#include <thread>

#include "bindings/gil.h"

namespace py = pybind11;

namespace headrace {
namespace {

// A waiting caller spins this long where answers come about as fast; a parked thread takes tens of
// microseconds to wake.
constexpr auto kSpin = std::chrono::microseconds(50);
// Abandoned Requests are freed by the next call from Python; where none comes, by the scheduler.
constexpr size_t kUnsweptMax = 64;
// 30 years, as good as none; the clock's counter would overflow at ten times that.
constexpr double kDeadlineMax_ms = 1e12;

Ticket& ticket_of(Job* job) {
  return *static_cast<Ticket*>(job);
}

// Runs Batches on a native Plan, without touching Python.
class NativeRunner : public BatchRunner {
 public:
  explicit NativeRunner(std::shared_ptr<Plan> plan) : plan_(std::move(plan)) {}

  void run(std::span<Job* const> jobs) override {
    requests_.clear();
    for (Job* job : jobs) requests_.push_back(ticket_of(job).inputs());
    Run run = plan_->run(requests_);
    size_t outputs = plan_->program().signature.outputs().size();
    for (size_t i = 0; i < jobs.size(); ++i) ticket_of(jobs[i]).outputs().copy(run, i, outputs);
  }

 private:
  std::shared_ptr<Plan> plan_;
  std::vector<RequestInputs> requests_;
};

// Runs Batches on another backend: calls run_batch(list of dicts) -> list of dicts.
class PythonRunner : public BatchRunner {
 public:
  explicit PythonRunner(py::object run_batch) : run_batch_(std::move(run_batch)) {}

  void run(std::span<Job* const> jobs) override {
    py::gil_scoped_acquire acquire;
    try {
      py::list requests;
      for (Job* job : jobs) requests.append(ticket_of(job).python().arrays);
      py::list results = run_batch_(requests);
      if (results.size() != jobs.size()) {
        fail(ErrorKind::kExecution, "backend: got ", results.size(), " Results, expected one for ",
             "each of ", jobs.size(), " Requests");
      }
      for (size_t i = 0; i < jobs.size(); ++i) ticket_of(jobs[i]).python().result = results[i];
    } catch (const py::error_already_set& error) {
      // A StopIteration would mean something else to those who wait in generators and coroutines.
      bool own = !error.matches(PyExc_StopIteration);
      if (own && jobs.size() == 1) ticket_of(jobs[0]).python().error = error.value();
      fail(ErrorKind::kExecution, error.what());
    }
  }

 private:
  py::object run_batch_;
};

}  // namespace

void TicketSink::completed(std::span<Job* const> jobs) noexcept {
  latency_ = Clock::now() - jobs.front()->arrival;
  std::shared_ptr<Mailbox> mailbox;
  for (Job* job : jobs) {
    std::shared_ptr<Mailbox> posted = ticket_of(job).complete();
    // One event loop, or one thread, is the rule; any others are signalled more often.
    if (mailbox && posted != mailbox) mailbox->signal();
    if (posted) mailbox = std::move(posted);
  }
  if (mailbox) mailbox->signal();
  if (PythonSide::unswept() > kUnsweptMax) {
    py::gil_scoped_acquire acquire;
    PythonSide::sweep();
  }
}

std::shared_ptr<Scheduler> Scheduler::of_plan(std::shared_ptr<Plan> plan,
                                              const SchedulerOptions& options) {
  const Signature* signature = &plan->program().signature;
  auto runner = std::make_unique<NativeRunner>(std::move(plan));
  return {new Scheduler(std::move(runner), signature, options), &drop};
}

std::shared_ptr<Scheduler> Scheduler::of_function(py::object run_batch,
                                                  const SchedulerOptions& options) {
  auto runner = std::make_unique<PythonRunner>(std::move(run_batch));
  return {new Scheduler(std::move(runner), nullptr, options), &drop};
}

Scheduler::Scheduler(std::unique_ptr<BatchRunner> runner, const Signature* signature,
                     const SchedulerOptions& options)
    : runner_(std::move(runner)),
      signature_(signature),
      ledger_(options.ledger_fd < 0 ? nullptr : std::make_unique<LedgerFile>(options.ledger_fd)),
      batcher_(*runner_, sink_,
               {.max_queue = options.max_queue,
                .max_batch = options.max_batch,
                .slo_s = options.slo_s,
                .ledger = ledger_ ? &ledger_->ledger() : nullptr}) {}

// With the GIL, wherever the last reference ends: a garbage collection may be anywhere.
void Scheduler::drop(Scheduler* scheduler) {
  if (scheduler->batcher_.forked()) return;  // must not be destroyed here
  if (!scheduler->batcher_.inside()) {
    {
      GilReleased released;  // the runner may need it to finish
      scheduler->batcher_.close(false);
    }
    delete scheduler;
    return;
  }
  // In its own Batch, which another thread can wait for. Without one it stays, which costs two
  // idle threads.
  try {
    std::thread([scheduler] {
      scheduler->batcher_.close(false);
      with_gil([scheduler] { delete scheduler; });
    }).detach();
  } catch (const std::system_error&) {
  }
}

void Scheduler::submit(Ticket& ticket, std::optional<double> deadline_ms, int priority,
                       uint64_t caller, bool here) {
  ticket.priority = priority;
  ticket.caller = caller;
  if (deadline_ms && std::isnan(*deadline_ms)) {
    fail(ErrorKind::kDeadlineExceeded, "deadline_ms: got nan, expected milliseconds from now");
  }
  if (deadline_ms) {
    std::chrono::duration<double, std::milli> in(
        std::clamp(*deadline_ms, -kDeadlineMax_ms, kDeadlineMax_ms));
    ticket.deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(in);
  }
  ticket.hold(weak_from_this());
  try {
    if (here) {
      GilReleased released;
      batcher_.submit_or_run(ticket);
    } else {
      batcher_.submit(ticket);
    }
  } catch (...) {
    ticket.release();
    throw;
  }
}

// Spinning pays where the last answers came within about the time it takes.
Clock::duration Scheduler::spin() const {
  return spins_ && sink_.latency() < 2 * kSpin ? kSpin : Clock::duration::zero();
}

}  // namespace headrace
