#include "cuda/plan.h"

#include "cuda/state.h"

namespace headrace::cuda {
namespace {

// A step of constants alone is worth a kernel from so many elements of float on: a table of
// positions, of which each Batch takes some.
constexpr int64_t kManyElements = 64;

std::string list(const std::vector<RefusedOps::Node>& nodes) {
  std::string text = "device cuda cannot run the whole Model:";
  for (const RefusedOps::Node& node : nodes) {
    text += str("\n  ", node.op, " (node '", node.name, "'): ", node.reason);
  }
  return text;
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

}  // namespace

RefusedOps::RefusedOps(std::vector<Node> nodes)
    : Error(ErrorKind::kUnsupportedOp, list(nodes)), nodes_(std::move(nodes)) {}

DevicePlan::DevicePlan(Program program, std::shared_ptr<Device> device, ProductSettings settings)
    : program_(std::move(program)),
      device_(std::move(device)),
      steps_(program_.steps.size()),
      values_(program_.values.size()) {
  OnDevice here(*device_);
  products_ = std::make_unique<Products>(device_, std::move(settings));
  place_steps();
  send_constants();
}

DevicePlan::~DevicePlan() = default;

// The node as its CPU kernel got it. Its constants are all there.
NodeSpec DevicePlan::spec_of(const Step& step) const {
  NodeSpec node;
  node.op = step.op;
  node.name = step.name;
  node.opset = step.opset;
  node.attributes = step.attributes;
  for (ValueId id : step.inputs) {
    const Value* value = id == kAbsent ? nullptr : &program_.values[static_cast<size_t>(id)];
    node.input_dtypes.push_back(value ? value->dtype : DType::kNone);
    node.constants.push_back(value && value->constant ? value->data : ConstTensorView{});
  }
  for (ValueId id : step.outputs) {
    node.output_dtypes.push_back(id == kAbsent ? DType::kNone
                                               : program_.values[static_cast<size_t>(id)].dtype);
  }
  return node;
}

bool DevicePlan::runs_on_host(const Step& step) const {
  if (step.op == "Shape" || step.op == "Size") return true;
  bool many = false;
  for (ValueId id : step.inputs) {
    if (id == kAbsent) continue;
    if (!value(id).on_host) return false;
    const Value& input = program_.values[static_cast<size_t>(id)];
    many =
        many || (input.constant && is_float(input.dtype) && input.shape.elements() > kManyElements);
  }
  return !many || !CudaRegistry::global().has(step.op);
}

void DevicePlan::place_step(size_t s, std::vector<RefusedOps::Node>& refused) {
  const Step& step = program_.steps[s];
  DeviceStep& placed = steps_[s];
  auto set_outputs = [&](bool host) {
    for (ValueId id : step.outputs) {
      if (id != kAbsent) value(id).on_host = host, value(id).on_device = !host;
    }
  };
  if (step.aliases) {
    placed.place = Place::kAlias;
    const DeviceValue& from = value(step.inputs[static_cast<size_t>(step.kernel->alias())]);
    DeviceValue& to = value(step.outputs[0]);
    to.on_host = from.on_host;
    to.input = from.input;
    return;
  }
  if (step.kernel->alias() >= 0 || runs_on_host(step)) {
    placed.place = Place::kHost;
    return set_outputs(true);
  }
  placed.place = Place::kDevice;
  try {
    placed.kernel = CudaRegistry::global().make({spec_of(step), *step.kernel, device_, *products_});
    need_on_device(s, refused);
  } catch (const UnsupportedOpError& error) {
    refused.push_back({error.op(), error.node(), error.reason()});
  }
  set_outputs(false);
}

// Marks what the step's kernels read, and checks that what they must know is known on the host.
void DevicePlan::need_on_device(size_t s, std::vector<RefusedOps::Node>& refused) {
  const Step& step = program_.steps[s];
  for (size_t i = 0; i < step.inputs.size(); ++i) {
    ValueId id = step.inputs[i];
    if (id == kAbsent) continue;
    if (steps_[s].kernel->on_host(i) && !value(id).on_host && value(id).input < 0) {
      refused.push_back(
          {step.op, step.name,
           str("device cuda: input ", i, " ('", program_.values[static_cast<size_t>(id)].name,
               "') decides shapes or indices and is computed on the device; "
               "expected a constant, an input of the Model or shape arithmetic")});
    }
    if (!steps_[s].kernel->reads(i)) continue;
    // What an alias shares is its root's.
    value(program_.values[static_cast<size_t>(id)].root).on_device = true;
  }
}

void DevicePlan::place_steps() {
  std::vector<RefusedOps::Node> refused;
  for (size_t v = 0; v < values_.size(); ++v) values_[v].on_host = program_.values[v].constant;
  for (size_t i = 0; i < program_.inputs.size(); ++i) {
    value(program_.inputs[i]).input = static_cast<int>(i);
    const TensorSpec& spec = program_.signature.inputs()[i];
    if (spec.dtype == DType::kString) {
      refused.push_back({"input", spec.name, "device cuda: got strings, expected numbers"});
    }
  }
  for (size_t s = 0; s < steps_.size(); ++s) place_step(s, refused);
  for (ValueId id : program_.outputs) {
    ValueId root = program_.values[static_cast<size_t>(id)].root;
    if (!value(root).on_host) value(root).on_device = true;
  }
  if (!refused.empty()) throw RefusedOps(std::move(refused));
}

void DevicePlan::send_constants() {
  std::vector<bool> host(values_.size(), false);
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = program_.steps[s];
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      // Shape rules may look at any constant that the CPU's kernel has not packed.
      if (step.inputs[i] == kAbsent || step.kernel->consumes(i)) continue;
      host[static_cast<size_t>(step.inputs[i])] = true;
    }
  }
  for (ValueId id : program_.outputs) host[static_cast<size_t>(id)] = true;
  for (size_t v = 0; v < values_.size(); ++v) {
    Value& constant = program_.values[v];
    if (!constant.constant || !constant.data.present()) continue;
    if (values_[v].on_device) {
      values_[v].constant = {device_, constant.data.data, constant.data.bytes()};
    }
    if (!host[v]) {
      constant.data = {};
      constant.owner.reset();
    }
  }
}

int64_t DevicePlan::weight_bytes() const {
  int64_t bytes = 0;
  for (const DeviceValue& value : values_) bytes += value.constant.bytes();
  for (const DeviceStep& step : steps_) bytes += step.kernel ? step.kernel->device_bytes() : 0;
  return bytes;
}

size_t DevicePlan::device_steps() const {
  size_t count = 0;
  for (const DeviceStep& step : steps_) count += step.place == Place::kDevice;
  return count;
}

int64_t DevicePlan::held_bytes() {
  std::lock_guard lock(idle_mutex_);
  int64_t bytes = 0;
  for (const auto& state : idle_) bytes += state->held_bytes();
  return bytes;
}

DeviceRun DevicePlan::run(std::span<const RequestInputs> requests) {
  OnDevice here(*device_);
  std::unique_ptr<DeviceState> state;
  {
    std::lock_guard lock(idle_mutex_);
    if (!idle_.empty()) {
      state = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (!state) state = std::make_unique<DeviceState>(*this);
  // On an exception the DeviceRun's destructor takes the state back, blocks and all.
  DeviceRun run(this, std::move(state));
  run.state().execute(requests);
  return run;
}

void DevicePlan::give_back(std::unique_ptr<DeviceState> state) {
  // A state whose stream has failed is of no more use.
  if (!state->reset()) return;
  std::lock_guard lock(idle_mutex_);
  idle_.push_back(std::move(state));
}

DeviceRun::DeviceRun(DevicePlan* plan, std::unique_ptr<DeviceState> state)
    : plan_(plan), state_(std::move(state)) {}

DeviceRun::DeviceRun(DeviceRun&&) noexcept = default;

DeviceRun::~DeviceRun() {
  if (state_) plan_->give_back(std::move(state_));
}

ConstTensorView DeviceRun::output(size_t request, size_t output) const {
  return state_->output(request, output);
}

}  // namespace headrace::cuda
