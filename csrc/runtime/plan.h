// A Plan: a Program with the threads that run it. `Plan::run` is the ragged lockstep executor.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/thread_pool.h"
#include "runtime/program.h"

namespace headrace {

// The inputs of one Request, in signature order. They stay the caller's until the Run is gone.
using RequestInputs = std::span<const ConstTensorView>;

class Plan;
class RunState;

// A finished Batch: lends its outputs until it is destroyed, then gives its memory back to the
// Plan.
class Run {
 public:
  Run(Plan* plan, std::unique_ptr<RunState> state);
  ~Run();
  Run(Run&&) noexcept;
  Run& operator=(Run&&) = delete;

  // Views into the Plan's memory (strings point into the Request's and constants too).
  ConstTensorView output(size_t request, size_t output) const;
  // The memory of a large output of a lone Request, which the view from output() looks into, to
  // keep it beyond the Run; an empty Block where it cannot be had, and on a second call.
  Block take_output(size_t output);

 private:
  friend class Plan;
  Plan* plan_;
  std::unique_ptr<RunState> state_;
};

// A tensor that an op read or wrote; of a value that is not constant, the first Request's.
struct StepValue {
  DType dtype = DType::kNone;  // kNone: absent
  Shape shape{};
  bool constant = false;
};

// One op of a profiled Run: how long it took, for all Requests together, and what it worked on.
struct StepTime {
  std::string op;
  std::string name;
  int64_t ns;
  std::vector<StepValue> inputs;
  std::vector<StepValue> outputs;
};

class Plan {
 public:
  Plan(Program program, int threads);
  ~Plan();

  const Program& program() const { return program_; }
  int threads() const { return threads_; }

  // Runs Requests together; each result is bit for bit what the Request would get alone. The
  // inputs must have passed signature().check(). Safe to call from any number of threads.
  // In the steady state it takes nothing from the heap.
  // Throws Error; the Batch then has no results at all.
  Run run(std::span<const RequestInputs> requests, std::vector<StepTime>* profile = nullptr);

  // Arena bytes held for running Batches.
  int64_t arena_bytes();

 private:
  friend class Run;
  std::unique_ptr<RunState> acquire();
  void give_back(std::unique_ptr<RunState> state);

  Program program_;
  int threads_;
  std::shared_ptr<ThreadPool> pool_;
  std::mutex idle_mutex_;
  std::vector<std::unique_ptr<RunState>> idle_;
};

}  // namespace headrace
