#include "cuda/state.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace headrace::cuda {
namespace {

[[noreturn]] void rethrow_at(const Step& step, const Error& error) {
  fail(error.kind(), step.op, " (node '", step.name, "'): ", error.what());
}

}  // namespace

DeviceState::DeviceState(const DevicePlan& plan)
    : plan_(plan),
      program_(plan.program()),
      stream_(plan.device_->make_stream()),
      allocator_(plan.device_),
      staging_(plan.device_),
      pool_(shared_pool(1)),
      memory_(program_.values.size()),
      results_(program_.outputs.size()) {
  size_t inputs = 0;
  size_t outputs = 0;
  for (const Step& step : program_.steps) {
    inputs = std::max(inputs, step.inputs.size());
    outputs = std::max(outputs, step.outputs.size());
  }
  input_views_.resize(inputs);
  output_shapes_.resize(outputs);
  step_inputs_.resize(inputs);
  step_outputs_.resize(outputs);
}

std::span<Shape> DeviceState::shapes_of(ValueId id) {
  return {shapes_.data() + static_cast<size_t>(id) * requests_.size(), requests_.size()};
}

std::span<int64_t> DeviceState::offsets_of(ValueId id) {
  size_t places = requests_.size() + 1;
  return {offsets_.data() + static_cast<size_t>(id) * places, places};
}

void DeviceState::set_offsets(ValueId id) {
  std::span<Shape> shapes = shapes_of(id);
  std::span<int64_t> offsets = offsets_of(id);
  offsets[0] = 0;
  for (size_t r = 0; r < requests_.size(); ++r) offsets[r + 1] = offsets[r] + shapes[r].elements();
}

int64_t DeviceState::bytes_of(ValueId id) {
  return offsets_of(id).back() * size_of(value(id).dtype);
}

Segments DeviceState::segments(ValueId id, std::byte* data) {
  bool constant = value(id).constant;
  // A constant has one segment that all Requests read; its shape and end were set like theirs.
  return {.dtype = value(id).dtype,
          .data = data,
          .shapes = shapes_of(id).first(constant ? 1 : requests_.size()),
          .offsets = offsets_of(id).first(constant ? 2 : requests_.size() + 1),
          .shared = constant};
}

// What the shape rule of a step may see of an input. Without data where that lies on the device.
ConstTensorView DeviceState::host_view(ValueId id, size_t request) {
  const Value& of = value(id);
  ConstTensorView view{of.dtype, shapes_of(id)[request], nullptr};
  if (of.constant) {
    view.data = of.data.data;
  } else if (int input = plan_.value(id).input; input >= 0) {
    view.data = requests_[request][static_cast<size_t>(input)].data;
  } else if (const std::byte* host = memory(id).host; host != nullptr) {
    view.data = host + offsets_of(id)[request] * size_of(of.dtype);
  }
  return view;
}

void DeviceState::bind_inputs() {
  for (size_t v = 0; v < program_.values.size(); ++v) {
    auto id = static_cast<ValueId>(v);
    if (!value(id).constant) continue;
    std::ranges::fill(shapes_of(id), value(id).shape);
    set_offsets(id);
    memory(id).device = static_cast<std::byte*>(plan_.value(id).constant.data());
    memory(id).host = static_cast<std::byte*>(const_cast<void*>(value(id).data.data));
  }
  for (size_t i = 0; i < program_.inputs.size(); ++i) {
    ValueId id = program_.inputs[i];
    for (size_t r = 0; r < requests_.size(); ++r) shapes_of(id)[r] = requests_[r][i].shape;
    set_offsets(id);
    if (!plan_.value(id).on_device) continue;
    int64_t bytes = bytes_of(id);
    std::byte* pinned = staging_.take(bytes);
    for (size_t r = 0; r < requests_.size(); ++r) {
      if (requests_[r][i].bytes() == 0) continue;
      std::memcpy(pinned + offsets_of(id)[r] * size_of(value(id).dtype), requests_[r][i].data,
                  static_cast<size_t>(requests_[r][i].bytes()));
    }
    memory(id).device = memory(id).device_block = allocator_.allocate(bytes);
    stream_->copy_to_device(memory(id).device, pinned, bytes);
  }
}

void DeviceState::infer(const Step& step) {
  std::span inputs(input_views_.data(), step.inputs.size());
  std::span outputs(output_shapes_.data(), step.outputs.size());
  for (size_t r = 0; r < requests_.size(); ++r) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      ValueId id = step.inputs[i];
      // The CPU's kernel knows what it has packed, and expects to find it gone.
      bool packed = id != kAbsent && value(id).constant && step.kernel->consumes(i);
      inputs[i] = id == kAbsent || packed ? ConstTensorView() : host_view(id, r);
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

// Puts a copy of a value that the host computed on the device.
void DeviceState::send(ValueId id) {
  int64_t bytes = bytes_of(id);
  std::byte* pinned = staging_.take(bytes);
  if (bytes > 0) std::memcpy(pinned, memory(id).host, static_cast<size_t>(bytes));
  memory(id).device = memory(id).device_block = allocator_.allocate(bytes);
  stream_->copy_to_device(memory(id).device, pinned, bytes);
}

void DeviceState::share(const Step& step) {
  const Memory& from = memory(step.inputs[static_cast<size_t>(step.kernel->alias())]);
  // The root keeps the blocks.
  memory(step.outputs[0]).host = from.host;
  memory(step.outputs[0]).device = from.device;
}

void DeviceState::run_on_host(const Step& step) {
  for (ValueId id : step.outputs) {
    if (id == kAbsent) continue;
    memory(id).host = memory(id).host_block = arena_.allocate(bytes_of(id));
  }
  if (int alias = step.kernel->alias(); alias >= 0) {  // of a constant: every Request gets a copy
    ValueId from = step.inputs[static_cast<size_t>(alias)];
    ValueId to = step.outputs[0];
    int64_t bytes = value(from).data.bytes();
    for (size_t r = 0; r < requests_.size() && bytes > 0; ++r) {
      std::memcpy(memory(to).host + offsets_of(to)[r] * size_of(value(to).dtype), memory(from).host,
                  static_cast<size_t>(bytes));
    }
  } else {
    std::span inputs(step_inputs_.data(), step.inputs.size());
    std::span outputs(step_outputs_.data(), step.outputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      ValueId id = step.inputs[i];
      bool packed = id != kAbsent && value(id).constant && !value(id).data.present();
      inputs[i] = id == kAbsent || packed ? Segments() : segments(id, memory(id).host);
    }
    for (size_t o = 0; o < outputs.size(); ++o) {
      ValueId id = step.outputs[o];
      outputs[o] = id == kAbsent ? Segments() : segments(id, memory(id).host);
    }
    OpRun run(requests_.size(), inputs, outputs, *pool_, 1, arena_, false);
    step.kernel->run(run);
    run.release_scratch();
  }
  for (ValueId id : step.outputs) {
    if (id != kAbsent && plan_.value(id).on_device) send(id);
  }
}

void DeviceState::run_on_device(const Step& step, const CudaOp& kernel) {
  for (ValueId id : step.outputs) {
    if (id == kAbsent) continue;
    memory(id).device = memory(id).device_block = allocator_.allocate(bytes_of(id));
  }
  std::span inputs(step_inputs_.data(), step.inputs.size());
  std::span outputs(step_outputs_.data(), step.outputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    ValueId id = step.inputs[i];
    inputs[i] = id == kAbsent ? Segments() : segments(id, memory(id).device);
  }
  for (size_t o = 0; o < outputs.size(); ++o) {
    ValueId id = step.outputs[o];
    outputs[o] = id == kAbsent ? Segments() : segments(id, memory(id).device);
  }
  auto host_input = [&](size_t i, size_t request) { return host_view(step.inputs[i], request); };
  CudaRun run(requests_.size(), inputs, outputs, host_input, *stream_, allocator_, staging_);
  try {
    kernel.run(run);
  } catch (...) {
    run.release_scratch();
    throw;
  }
  run.release_scratch();
}

void DeviceState::run_step(size_t s) {
  const Step& step = program_.steps[s];
  try {
    infer(step);
    switch (plan_.step(s).place) {
      case Place::kAlias:
        share(step);
        break;
      case Place::kHost:
        run_on_host(step);
        break;
      case Place::kDevice:
        run_on_device(step, *plan_.step(s).kernel);
        break;
    }
  } catch (const Error& error) {
    rethrow_at(step, error);
  }
  for (ValueId root : step.dead) release(root);
}

void DeviceState::fetch_outputs() {
  for (size_t o = 0; o < program_.outputs.size(); ++o) {
    ValueId id = program_.outputs[o];
    if (memory(id).device == nullptr || value(id).constant) {
      results_[o] = memory(id).host;
      continue;
    }
    int64_t bytes = bytes_of(id);
    std::byte* pinned = staging_.take(bytes);
    stream_->copy_to_host(pinned, memory(id).device, bytes);
    results_[o] = pinned;
  }
  stream_->synchronize();
}

void DeviceState::execute(std::span<const RequestInputs> requests) {
  requests_ = requests;
  size_t values = program_.values.size();
  shapes_.resize(std::max(shapes_.size(), values * requests.size()));
  offsets_.resize(std::max(offsets_.size(), values * (requests.size() + 1)));
  bind_inputs();
  for (size_t s = 0; s < program_.steps.size(); ++s) run_step(s);
  fetch_outputs();
}

ConstTensorView DeviceState::output(size_t request, size_t output) const {
  ValueId id = program_.outputs[output];
  const Value& of = value(id);
  auto v = static_cast<size_t>(id);
  size_t r = of.constant ? 0 : request;
  int64_t offset = of.constant ? 0 : offsets_[v * (requests_.size() + 1) + r];
  return {of.dtype, shapes_[v * requests_.size() + r],
          results_[output] + offset * size_of(of.dtype)};
}

void DeviceState::release(ValueId root) {
  Memory& of = memory(root);
  if (of.host_block != nullptr) arena_.release(of.host_block);
  if (of.device_block != nullptr) allocator_.release(of.device_block);
  of = {};
}

bool DeviceState::reset() {
  bool sound = true;
  try {
    stream_->synchronize();  // after an error there may be work left that uses what is released
  } catch (const Error&) {
    sound = false;
  }
  for (size_t v = 0; v < memory_.size(); ++v) release(static_cast<ValueId>(v));
  arena_.trim();
  allocator_.trim();
  staging_.reset();
  requests_ = {};
  return sound;
}

}  // namespace headrace::cuda
