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

// Rows that a chain takes through at a time: enough to use packed weights well, few enough that
// what the ops hand each other stays in a core's cache.
constexpr int64_t kChainRows = 112;
// Rows per thread from which on it is better that each thread reads all weights.
constexpr int64_t kMinChainRows = 24;

// Maps of all images together that leave a core's caches: from here on images go one by one.
constexpr int64_t kMapBytes = 4 << 20;
// Where threads do not share the images evenly, each should have as many as this.
constexpr int64_t kUnevenImages = 4;

[[noreturn]] void rethrow_at(const Step& step, const Error& error) {
  fail(error.kind(), step.op, " (node '", step.name, "'): ", error.what());
}

}  // namespace

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
  OpRun run(requests_, inputs, outputs, pool, threads, arena_);
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

// False, and nothing done, where the rows are too few for it.
bool RunState::execute_chain(std::span<const Step> steps, ThreadPool& pool, int threads) {
  const int64_t rows = chain_rows(value(steps.front().inputs[0]));
  if (rows < kMinChainRows * threads) return false;
  for (const Step& step : steps) {
    try {
      infer(step);
    } catch (const Error& error) {
      rethrow_at(step, error);
    }
    ValueId output = step.outputs[0];
    if (!program_.values[static_cast<size_t>(output)].inner) place(step);
  }
  make_workspaces(threads);
  int64_t blocks = (rows + kChainRows - 1) / kChainRows;
  blocks = (blocks + threads - 1) / threads * threads;
  auto run_block = [&](int64_t block, int thread) {
    ChainPart part{false, 0, rows * block / blocks, rows * (block + 1) / blocks};
    workspaces_[static_cast<size_t>(thread)]->run(steps, values_, part, pool);
  };
  pool.run(blocks, run_block, threads);
  for (const Step& step : steps) {
    for (ValueId root : step.dead) release(root);
  }
  return true;
}

void RunState::make_workspaces(int threads) {
  while (static_cast<int>(workspaces_.size()) < threads) {
    workspaces_.push_back(std::make_unique<ChainWorkspace>(program_));
  }
}

// True if both values have the same number of images in every Request.
bool RunState::same_images(ValueId id, ValueId as) {
  for (size_t r = 0; r < requests_; ++r) {
    if (shapes_of(id)[r].rank() < 1 || shapes_of(id)[r][0] != shapes_of(as)[r][0]) return false;
  }
  return true;
}

// Infers `steps` and returns how many of them, from the first, are worth chaining: up to the last
// that reads or writes maps too large for the caches.
size_t RunState::infer_images(std::span<const Step> steps) {
  ValueId first = steps.front().inputs[0];
  size_t count = 0;
  for (size_t s = 0; s < steps.size(); ++s) {
    const Step& step = steps[s];
    try {
      infer(step);
    } catch (const Error& error) {
      rethrow_at(step, error);
    }
    bool large = false;
    for (ValueId id : {step.inputs[0], step.outputs[0]}) {
      if (!same_images(id, first)) return count;
      Segments& segments = value(id);
      large = large || segments.elements() * size_of(segments.dtype) >= kMapBytes;
    }
    if (large) count = s + 1;
  }
  return count;
}

// Takes each image through some of the first of `steps`. Returns how many; 0, and nothing done,
// where that is not worth it.
size_t RunState::execute_images(std::span<const Step> steps, ThreadPool& pool, int threads) {
  ValueId first = steps.front().inputs[0];
  int64_t images = 0;
  for (size_t r = 0; r < requests_; ++r) {
    if (shapes_of(first)[r].rank() < 1) return 0;
    images += shapes_of(first)[r][0];
  }
  // A lone image is worked on by all threads.
  if (images < 2 || (images % threads != 0 && images < kUnevenImages * threads)) return 0;
  size_t count = infer_images(steps);
  if (count < 2) return 0;
  steps = steps.first(count);
  for (size_t s = 0; s < count; ++s) {
    ValueId made = steps[s].outputs[0];
    bool dies = std::ranges::any_of(steps.subspan(s), [&](const Step& step) {
      return std::ranges::count(step.dead, made) > 0;
    });
    if (!dies) place(steps[s]);
  }
  make_workspaces(threads);
  auto run_image = [&](int64_t image, int thread) {
    size_t request = 0;
    while (image >= shapes_of(first)[request][0]) image -= shapes_of(first)[request++][0];
    ChainPart part{true, request, image, image + 1};
    workspaces_[static_cast<size_t>(thread)]->run(steps, values_, part, pool);
  };
  pool.run(images, run_image, threads);
  for (const Step& step : steps) {
    for (ValueId root : step.dead) release(root);
  }
  return count;
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
