// What Python holds of a Request that was submitted to a Batcher, and how it hears of the end.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "batcher/job.h"
#include "batcher/wake_fd.h"
#include "bindings/convert.h"
#include "runtime/plan.h"

namespace headrace {

class Mailbox;
class Scheduler;

// How often a thread that waits for long looks for signals (Ctrl-C).
constexpr auto kSignalPeriod = std::chrono::milliseconds(50);

// The outputs of one Request, copied out of a Run, in one block.
class OutputBlock {
 public:
  void copy(const Run& run, size_t request, size_t outputs);
  const ConstTensorView& view(size_t output) const { return views_[output]; }
  // The block as the owner of arrays that look into it.
  const std::shared_ptr<std::byte[]>& memory() const { return memory_; }

 private:
  std::vector<ConstTensorView> views_;
  std::shared_ptr<std::byte[]> memory_;
};

// The Python objects of a Ticket. Made, used and destroyed with the GIL held.
struct PythonSide {
  HeldRequest request;      // native: the inputs
  pybind11::object arrays;  // other backends: the inputs, as a dict
  pybind11::object result;  // a dict, once there
  pybind11::object error;   // an exception a backend raised
  pybind11::object target;  // whom the mailbox's reader tells

  // Destroys it now, or, on a thread that does not hold the GIL, soon on one that does: scheduler
  // threads must not wait for the interpreter.
  static void drop(std::unique_ptr<PythonSide> side);
  // Destroys what was dropped without the GIL. Call with it.
  static void sweep();
  // How many wait to be swept.
  static size_t unswept();
};

class Ticket : public Job, public std::enable_shared_from_this<Ticket> {
 public:
  Ticket(const Signature* signature, std::unique_ptr<PythonSide> python);
  ~Ticket();

  PythonSide& python() { return *python_; }
  OutputBlock& outputs() { return outputs_; }
  // Read without the GIL: the arrays stay where they are.
  RequestInputs inputs() const { return inputs_; }

  bool done() const { return done_.load(std::memory_order_acquire); }
  // Blocks with the GIL released, spinning first for `spin`, until done (true) or the timeout.
  // Throws error_already_set where a signal handler raised.
  bool wait(std::optional<double> timeout_s, Clock::duration spin);
  // Of a done Ticket: its Result, or throws what it ended with.
  pybind11::object result();

  // Has the mailbox told of the end; false if it was done before.
  bool attach(std::shared_ptr<Mailbox> mailbox);

  // The Batcher owns the Ticket from before submit() until complete().
  void hold(std::weak_ptr<Scheduler> scheduler) {
    scheduler_ = std::move(scheduler);
    self_ = shared_from_this();
  }
  void release() { self_.reset(); }
  const std::weak_ptr<Scheduler>& scheduler() const { return scheduler_; }
  // Marks it done, wakes who waits; returns the mailbox it was posted to, if any.
  std::shared_ptr<Mailbox> complete();

 private:
  const Signature* signature_;  // null for backends that make Results themselves
  std::unique_ptr<PythonSide> python_;
  RequestInputs inputs_;
  OutputBlock outputs_;

  std::atomic<bool> done_{false};
  std::mutex mutex_;
  std::condition_variable ended_;
  bool waiting_ = false;
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<Ticket> self_;
  std::weak_ptr<Scheduler> scheduler_;
};

// Where the ended Tickets of one event loop, or of one thread, gather until it fetches them.
class Mailbox {
 public:
  int fd() const { return wake_.fd(); }
  void post(std::shared_ptr<Ticket> ticket);
  // Once per Batch, after its posts.
  void signal();
  // All that gathered. Call with the GIL.
  pybind11::list fetch();
  // Blocks with the GIL released until there is something to fetch; false once closed and empty.
  bool wait();
  void close();

 private:
  WakeFd wake_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Ticket>> tickets_;
  bool closed_ = false;
};

}  // namespace headrace
