#include "runtime/plan.h"

#include "runtime/run_state.h"

namespace headrace {

Run::Run(Plan* plan, std::unique_ptr<RunState> state) : plan_(plan), state_(std::move(state)) {}

Run::Run(Run&&) noexcept = default;

Run::~Run() {
  if (state_) plan_->give_back(std::move(state_));
}

ConstTensorView Run::output(size_t request, size_t output) const {
  return state_->output(request, output);
}

Block Run::take_output(size_t output) {
  return state_->take_output(output);
}

Plan::Plan(Program program, int threads)
    : program_(std::move(program)), threads_(threads), pool_(shared_pool(threads)) {}

Plan::~Plan() = default;

std::unique_ptr<RunState> Plan::acquire() {
  std::lock_guard lock(idle_mutex_);
  if (idle_.empty()) {
    idle_.reserve(8);
    return std::make_unique<RunState>(program_);
  }
  std::unique_ptr<RunState> state = std::move(idle_.back());
  idle_.pop_back();
  return state;
}

void Plan::give_back(std::unique_ptr<RunState> state) {
  state->reset();
  std::lock_guard lock(idle_mutex_);
  idle_.push_back(std::move(state));
}

Run Plan::run(std::span<const RequestInputs> requests, std::vector<StepTime>* profile) {
  Run run(this, acquire());
  // On an exception the Run's destructor takes the state back, blocks and all.
  run.state_->execute(requests, *pool_, threads_, profile);
  return run;
}

int64_t Plan::arena_bytes() {
  std::lock_guard lock(idle_mutex_);
  int64_t bytes = 0;
  for (const auto& state : idle_) bytes += state->arena_bytes();
  return bytes;
}

}  // namespace headrace
