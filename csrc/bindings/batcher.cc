#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/gil.h"
#include "bindings/scheduler.h"

namespace py = pybind11;

namespace headrace {
namespace {

std::shared_ptr<Ticket> submit_native(Scheduler& scheduler, const py::dict& request,
                                      std::optional<double> deadline_ms, int priority,
                                      uint64_t caller, bool here) {
  PythonSide::sweep();
  const Signature& signature = *scheduler.signature();
  auto ticket = std::make_shared<Ticket>(
      &signature, std::make_unique<PythonSide>(HeldRequest(signature, request)));
  ticket->work = signature.work(ticket->inputs());
  scheduler.submit(*ticket, deadline_ms, priority, caller, here);
  return ticket;
}

std::shared_ptr<Ticket> submit_checked(Scheduler& scheduler, py::dict arrays, int64_t work,
                                       std::optional<double> deadline_ms, int priority,
                                       uint64_t caller) {
  PythonSide::sweep();
  auto side = std::make_unique<PythonSide>();
  side->arrays = std::move(arrays);
  auto ticket = std::make_shared<Ticket>(nullptr, std::move(side));
  ticket->work = work;
  scheduler.submit(*ticket, deadline_ms, priority, caller, false);
  return ticket;
}

// False if the Ticket runs or has ended.
bool cancel(Ticket& ticket) {
  std::shared_ptr<Scheduler> scheduler = ticket.scheduler().lock();
  if (!scheduler) return false;
  GilReleased released;
  return scheduler->batcher().cancel(ticket);
}

py::object result_within(Ticket& ticket, std::optional<double> timeout_s) {
  if (!ticket.done()) {
    Clock::duration spin{};
    if (std::shared_ptr<Scheduler> scheduler = ticket.scheduler().lock()) {
      if (scheduler->batcher().forked()) {
        fail(ErrorKind::kBackendUnavailable, "batcher: got result() in a process that was forked ",
             "from the one that runs the Request, expected it there");
      }
      spin = scheduler->spin();
      // Not for callers in a hurry: a Batch may take longer than they want to wait.
      if (!timeout_s) {
        GilReleased released;
        scheduler->batcher().help(ticket);
      }
    }
    if (!ticket.wait(timeout_s, spin)) {
      PyErr_SetNone(PyExc_TimeoutError);
      throw py::error_already_set();
    }
  }
  return ticket.result();
}

const char* status_of(const Ticket& ticket) {
  switch (ticket.status) {
    case JobStatus::kNew:
    case JobStatus::kQueued:
      return "waiting";
    case JobStatus::kRunning:
      return "running";
    case JobStatus::kOk:
      return "ok";
    case JobStatus::kFailed:
      return "failed";
    case JobStatus::kExpired:
      return "expired";
    case JobStatus::kCancelled:
      if (!ticket.done()) return "waiting";  // its message may not be there yet
      return ticket.message.empty() ? "cancelled" : "closed";
  }
  return "?";
}

// {"count", "total_s", "p50_s", "p99_s", "buckets": [(upper bound in s, count at or below it)]}
py::dict to_dict(const DurationHistogram& histogram) {
  py::list buckets;
  int64_t seen = 0;
  for (int b = 0; b < DurationHistogram::kBuckets; ++b) {
    seen += histogram.counts()[static_cast<size_t>(b)];
    buckets.append(py::make_tuple(DurationHistogram::upper_bound(b), seen));
  }
  py::dict dict;
  dict["count"] = histogram.count();
  dict["total_s"] = histogram.total_s();
  dict["p50_s"] = histogram.quantile(0.5);
  dict["p99_s"] = histogram.quantile(0.99);
  dict["buckets"] = std::move(buckets);
  return dict;
}

py::dict stats(Scheduler& scheduler) {
  PythonSide::sweep();
  BatcherStats stats = scheduler.batcher().stats();
  const Ledger& ledger = stats.ledger;
  py::dict dict;
  dict["accepted"] = ledger.accepted;
  dict["ok"] = ledger.ok;
  dict["failed"] = ledger.failed;
  dict["expired"] = ledger.expired;
  dict["cancelled"] = ledger.cancelled;
  dict["refused"] = ledger.refused;
  dict["queued"] = ledger.waiting + ledger.running;
  dict["waiting"] = ledger.waiting;
  dict["running"] = ledger.running;
  dict["batches"] = stats.batches;
  dict["batch_sizes"] = stats.batch_sizes;
  dict["batch_seconds"] = stats.batch_seconds;
  int64_t batched = 0;
  for (size_t n = 0; n < stats.batch_sizes.size(); ++n) {
    batched += static_cast<int64_t>(n) * stats.batch_sizes[n];
  }
  dict["requests_per_batch"] =
      stats.batches > 0 ? static_cast<double>(batched) / static_cast<double>(stats.batches) : 0.0;
  dict["offered_rps"] = stats.offered_rps;
  dict["offered_work_per_s"] = stats.offered_work_per_s;
  dict["capacity_rps"] = stats.capacity_rps;
  dict["capacity_work_per_s"] = stats.capacity_work_per_s;
  dict["utilisation"] = stats.utilisation;
  dict["queue_delay_s"] = stats.queue_delay_s;
  dict["running_s"] = stats.running_s;
  dict["queue_delay"] = to_dict(stats.queue_delay);
  dict["compute"] = to_dict(stats.compute);
  dict["cost_fixed_s"] = stats.cost_fixed_s;
  dict["cost_per_work_s"] = stats.cost_per_work_s;
  return dict;
}

void close(Scheduler& scheduler, bool drain) {
  auto closed = [&] {
    GilReleased released;
    return scheduler.batcher().close_within(drain, kSignalPeriod);
  };
  while (!closed()) {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  PythonSide::sweep();
}

void fit(Scheduler& scheduler, const std::vector<std::pair<double, double>>& pairs) {
  std::vector<CostModel::Sample> samples;
  for (auto [work, seconds] : pairs) samples.push_back({work, seconds});
  scheduler.batcher().fit(samples);
}

void bind_ticket(py::module_& module) {
  py::class_<Mailbox, std::shared_ptr<Mailbox>>(
      module, "Mailbox", "Where Tickets gather when they end. One signal per Batch.")
      .def(py::init<>())
      .def_property_readonly("fd", &Mailbox::fd, "Readable when there is something to fetch.")
      .def("fetch", &Mailbox::fetch, "All Tickets that ended since the last call.")
      .def("wait", &Mailbox::wait, "Blocks until there is something; False once closed and empty.")
      .def("close", &Mailbox::close, "Ends wait().");
  py::class_<Ticket, std::shared_ptr<Ticket>>(module, "Ticket", "A submitted Request.")
      .def_property_readonly("done", &Ticket::done)
      .def_property_readonly("status", &status_of,
                             "waiting, running, ok, failed, expired, cancelled (by its caller) or "
                             "closed (with the Batcher).")
      .def("cancel", &cancel, "Takes it out of the queue; False if it runs or has ended.")
      .def("result", &result_within, py::arg("timeout_s") = py::none(),
           "Waits, then gives the Result or raises; TimeoutError where it takes longer.")
      .def(
          "attach",
          [](Ticket& ticket, std::shared_ptr<Mailbox> mailbox, py::object target) {
            ticket.python().target = std::move(target);
            return ticket.attach(std::move(mailbox));
          },
          py::arg("mailbox"), py::arg("target"),
          "Posts it to the mailbox when it ends; False if it has ended already.")
      .def(
          "take_target",
          [](Ticket& ticket) { return std::exchange(ticket.python().target, py::object()); },
          "The object given at attach, once.");
}

}  // namespace

void bind_batcher(py::module_& module) {
  module.def(
      "fit_cost",
      [](const std::vector<std::pair<double, double>>& runs) {
        std::vector<CostModel::Sample> samples;
        for (const auto& [work, seconds] : runs) samples.push_back({work, seconds});
        CostModel cost;
        cost.fit(samples);
        return std::make_pair(cost.fixed_s(), cost.per_work_s());
      },
      py::arg("runs"),
      "The Batcher's cost model of Batches that ran: (work, seconds) each -> (fixed seconds, "
      "seconds "
      "per work).");
  bind_ticket(module);
  py::class_<Scheduler, std::shared_ptr<Scheduler>>(
      module, "Scheduler", "The Batcher's C++ side: one thread that forms and runs Batches.")
      .def_static(
          "of_plan",
          [](std::shared_ptr<Plan> plan, int max_queue, int max_batch, double slo_s,
             int ledger_fd) {
            return Scheduler::of_plan(std::move(plan), {max_queue, max_batch, slo_s, ledger_fd});
          },
          py::arg("plan"), py::arg("max_queue"), py::arg("max_batch"), py::arg("slo_s"),
          py::arg("ledger_fd"),
          "Runs Batches on a NativePlan, without Python. slo_s = 0 and ledger_fd = -1 for none.")
      .def_static(
          "of_function",
          [](py::object run_batch, int max_queue, int max_batch, double slo_s, int ledger_fd) {
            return Scheduler::of_function(std::move(run_batch),
                                          {max_queue, max_batch, slo_s, ledger_fd});
          },
          py::arg("run_batch"), py::arg("max_queue"), py::arg("max_batch"), py::arg("slo_s"),
          py::arg("ledger_fd"),
          "Runs Batches with run_batch(list of dicts) -> list of dicts. slo_s = 0 and "
          "ledger_fd = -1 for none.")
      .def("submit", &submit_native, py::arg("request"), py::arg("deadline_ms"),
           py::arg("priority"), py::arg("caller"), py::arg("here"),
           "Checks a Request against the plan's signature and queues it, or, where it may be run "
           "here and is sooner run than handed over, runs it on this thread.")
      .def("submit_checked", &submit_checked, py::arg("arrays"), py::arg("work"),
           py::arg("deadline_ms"), py::arg("priority"), py::arg("caller"),
           "Queues a Request that was checked and measured.")
      .def(
          "count_refused", [](Scheduler& scheduler) { scheduler.batcher().count_refused(); },
          "Enters a Request in the books that was refused before it was submitted.")
      .def("fit", &fit, py::arg("samples"), "Teaches the cost model (work, seconds) pairs.")
      .def("close", &close, py::arg("drain"),
           "Runs (drain) or cancels what waits; returns when all has ended. "
           "A signal handler that raises (Ctrl-C) ends the wait, not the closing.")
      .def("stats", &stats, "The ledger and the measurements.");
}

}  // namespace headrace
