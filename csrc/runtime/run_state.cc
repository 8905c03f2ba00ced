#include "runtime/run_state.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

// From here on an output gets memory of its own, which its receiver keeps; below, a copy is cheaper
// than keeping track of that.
constexpr int64_t kOwnBytes = 16384;

}  // namespace

void rethrow_at(const Step& step, const Error& error) {
  fail(error.kind(), step.op, " (node '", step.name, "'): ", error.what());
}

RunState::RunState(const Program& program)
    : program_(program),
      values_(program.values.size()),
      blocks_(program.values.size(), nullptr),
      results_(program.outputs.size()) {
  size_t inputs = 0;
  size_t outputs = 0;
  for (const Step& step : program.steps) {
    inputs = std::max(inputs, step.inputs.size());
    outputs = std::max(outputs, step.outputs.size());
  }
  input_views_.resize(inputs);
  output_shapes_.resize(outputs);
  step_inputs_.resize(inputs);
  step_outputs_.resize(outputs);
  constant_shapes_.resize(values_.size());
  constant_offsets_.resize(values_.size() * 2);
  for (size_t v = 0; v < values_.size(); ++v) {
    const Value& constant = program.values[v];
    if (!constant.constant || !constant.data.present()) continue;
    constant_shapes_[v] = constant.data.shape;
    constant_offsets_[2 * v + 1] = constant.data.elements();
    values_[v] = {.dtype = constant.dtype,
                  .data = static_cast<std::byte*>(const_cast<void*>(constant.data.data)),
                  .shapes = {&constant_shapes_[v], 1},
                  .offsets = {&constant_offsets_[2 * v], 2},
                  .shared = true};
  }
}

std::span<Shape> RunState::shapes_of(ValueId id) {
  return {shapes_.data() + static_cast<size_t>(id) * requests_, requests_};
}

std::span<int64_t> RunState::offsets_of(ValueId id) {
  return {offsets_.data() + static_cast<size_t>(id) * (requests_ + 1), requests_ + 1};
}

void RunState::set_offsets(ValueId id) {
  std::span<Shape> shapes = shapes_of(id);
  std::span<int64_t> offsets = offsets_of(id);
  offsets[0] = 0;
  for (size_t r = 0; r < requests_; ++r) offsets[r + 1] = offsets[r] + shapes[r].elements();
}

void RunState::bind_inputs(std::span<const RequestInputs> requests) {
  for (size_t i = 0; i < program_.inputs.size(); ++i) {
    ValueId id = program_.inputs[i];
    std::span<Shape> shapes = shapes_of(id);
    for (size_t r = 0; r < requests_; ++r) shapes[r] = requests[r][i].shape;
    set_offsets(id);
    Segments& segments = value(id);
    if (requests_ == 1) {  // read where the caller has it
      segments.data = static_cast<std::byte*>(const_cast<void*>(requests[0][i].data));
      continue;
    }
    int64_t size = size_of(segments.dtype);
    segments.data = arena_.allocate(segments.elements() * size);
    blocks_[static_cast<size_t>(id)] = segments.data;
    for (size_t r = 0; r < requests_; ++r) {
      int64_t bytes = requests[r][i].bytes();
      if (bytes > 0) {
        std::memcpy(segments.data + segments.offsets[r] * size, requests[r][i].data,
                    static_cast<size_t>(bytes));
      }
    }
  }
}

void RunState::infer(const Step& step) {
  std::span inputs(input_views_.data(), step.inputs.size());
  std::span outputs(output_shapes_.data(), step.outputs.size());
  for (size_t r = 0; r < requests_; ++r) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      // A consumed constant has no segments left and stays absent.
      bool present = step.inputs[i] != kAbsent && value(step.inputs[i]).present();
      inputs[i] = present ? ConstTensorView(value(step.inputs[i]).view(r)) : ConstTensorView();
    }
    std::ranges::fill(outputs, Shape());
    step.kernel->infer(inputs, outputs);
    for (size_t o = 0; o < outputs.size(); ++o) {
      if (step.outputs[o] != kAbsent) shapes_of(step.outputs[o])[r] = outputs[o];
    }
  }
  for (ValueId id : step.outputs) {
    if (id != kAbsent) set_offsets(id);
  }
}

// The output that keeps the memory of this value, or -1. Outputs of a lone Request do; those of a
// Batch would keep each other alive, so they are copied out.
int RunState::kept_as(ValueId id, int64_t bytes) const {
  if (requests_ != 1 || bytes < kOwnBytes) return -1;
  if (!program_.values[static_cast<size_t>(id)].result) return -1;
  for (size_t o = 0; o < program_.outputs.size(); ++o) {
    if (program_.values[static_cast<size_t>(program_.outputs[o])].root == id) {
      return static_cast<int>(o);
    }
  }
  return -1;
}

bool RunState::overwrite(const Step& step) {
  if (step.overwrites < 0) return false;
  ValueId input = step.inputs[static_cast<size_t>(step.overwrites)];
  auto root = static_cast<size_t>(program_.values[static_cast<size_t>(input)].root);
  if (blocks_[root] == nullptr) return false;
  // Segment by segment the sizes must agree: a broadcast grows them.
  if (!std::ranges::equal(offsets_of(input), offsets_of(step.outputs[0]))) return false;
  value(step.outputs[0]).data = value(input).data;
  blocks_[static_cast<size_t>(step.outputs[0])] = blocks_[root];
  blocks_[root] = nullptr;
  return true;
}

void RunState::place(const Step& step) {
  for (size_t o = 0; o < step.outputs.size(); ++o) {
    ValueId id = step.outputs[o];
    if (id == kAbsent) continue;
    if (o == 0 && step.aliases) {
      value(id).data = value(step.inputs[static_cast<size_t>(step.kernel->alias())]).data;
    } else {
      Segments& segments = value(id);
      int64_t bytes = segments.elements() * size_of(segments.dtype);
      if (int output = kept_as(id, bytes); output >= 0) {
        results_[static_cast<size_t>(output)] = Block(bytes);
        segments.data = results_[static_cast<size_t>(output)].data();
      } else if (o != 0 || !overwrite(step)) {
        segments.data = arena_.allocate(bytes);
        blocks_[static_cast<size_t>(id)] = segments.data;
      }
    }
  }
}

void RunState::copy_constant(const Step& step) {
  const Segments& from = value(step.inputs[static_cast<size_t>(step.kernel->alias())]);
  Segments& to = value(step.outputs[0]);
  for (size_t r = 0; r < requests_; ++r) {
    TensorView view = to.view(r);
    if (view.bytes() > 0) {
      std::memcpy(view.data, from.view(r).data, static_cast<size_t>(view.bytes()));
    }
  }
}

void RunState::run_step(const Step& step, ThreadPool& pool, int threads) {
  std::span inputs(step_inputs_.data(), step.inputs.size());
  std::span outputs(step_outputs_.data(), step.outputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = step.inputs[i] != kAbsent ? value(step.inputs[i]) : Segments();
  }
  for (size_t o = 0; o < outputs.size(); ++o) {
    outputs[o] = step.outputs[o] != kAbsent ? value(step.outputs[o]) : Segments();
  }
  OpRun run(requests_, inputs, outputs, pool, threads, arena_,
            !outputs.empty() && is_streamed(outputs[0]));
  try {
    step.kernel->run(run);
  } catch (...) {
    run.release_scratch();
    throw;
  }
  run.release_scratch();
}

void RunState::release(ValueId root) {
  std::byte*& block = blocks_[static_cast<size_t>(root)];
  if (block != nullptr) arena_.release(block);
  block = nullptr;
}

StepTime RunState::describe(const Step& step, int64_t ns) {
  StepTime time{step.op, step.name, ns, {}, {}};
  auto add = [&](std::vector<StepValue>& to, ValueId id) {
    if (id == kAbsent) {
      to.emplace_back();
      return;
    }
    const Value& value = program_.values[static_cast<size_t>(id)];
    to.push_back({value.dtype, value.constant ? value.shape : shapes_of(id)[0], value.constant});
  };
  for (ValueId id : step.inputs) add(time.inputs, id);
  for (ValueId id : step.outputs) add(time.outputs, id);
  return time;
}

void RunState::execute(std::span<const RequestInputs> requests, ThreadPool& pool, int threads,
                       std::vector<StepTime>* profile) {
  requests_ = requests.size();
  shapes_.resize(std::max(shapes_.size(), values_.size() * requests_));
  offsets_.resize(std::max(offsets_.size(), values_.size() * (requests_ + 1)));
  for (size_t v = 0; v < values_.size(); ++v) {
    if (program_.values[v].constant) continue;
    auto id = static_cast<ValueId>(v);
    values_[v] = {.dtype = program_.values[v].dtype,
                  .data = nullptr,
                  .shapes = shapes_of(id),
                  .offsets = offsets_of(id),
                  .shared = false};
  }
  bind_inputs(requests);
  for (std::span<const Step> rest(program_.steps); !rest.empty();) {
    const Step& step = rest.front();
    auto steps = static_cast<size_t>(step.chain);
    // A profile tells the ops apart, so it takes them one by one.
    if (profile == nullptr && steps > 1 && execute_chain(rest.first(steps), pool, threads)) {
      rest = rest.subspan(steps);
      continue;
    }
    if (profile == nullptr && step.images > 1) {
      auto candidates = rest.first(static_cast<size_t>(step.images));
      if (size_t done = execute_images(candidates, pool, threads); done > 0) {
        rest = rest.subspan(done);
        continue;
      }
    }
    if (profile == nullptr && step.elements > 1) {
      auto candidates = rest.first(static_cast<size_t>(step.elements));
      if (size_t done = execute_elements(candidates, pool, threads); done > 0) {
        rest = rest.subspan(done);
        continue;
      }
    }
    auto start = profile ? Clock::now() : Clock::time_point{};
    execute_step(step, pool, threads);
    if (profile) {
      profile->push_back(describe(step, (Clock::now() - start) / std::chrono::nanoseconds(1)));
    }
    rest = rest.subspan(1);
  }
}

void RunState::execute_step(const Step& step, ThreadPool& pool, int threads) {
  try {
    infer(step);
    place(step);
    if (!step.aliases) {
      if (step.kernel->alias() >= 0) {
        copy_constant(step);
      } else {
        run_step(step, pool, threads);
      }
    }
  } catch (const Error& error) {
    rethrow_at(step, error);
  }
  for (ValueId root : step.dead) release(root);
}

int64_t RunState::arena_bytes() const {
  int64_t bytes = arena_.capacity_bytes();
  for (const auto& workspace : workspaces_) bytes += workspace->arena_bytes();
  return bytes;
}

ConstTensorView RunState::output(size_t request, size_t output) const {
  return values_[static_cast<size_t>(program_.outputs[output])].view(request);
}

Block RunState::take_output(size_t output) {
  return std::move(results_[output]);
}

void RunState::reset() {
  for (Block& result : results_) result = Block();
  for (size_t v = 0; v < blocks_.size(); ++v) release(static_cast<ValueId>(v));
  arena_.trim();
  for (const auto& workspace : workspaces_) workspace->trim();
}

}  // namespace headrace
