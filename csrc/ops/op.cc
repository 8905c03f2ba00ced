#include "ops/op.h"

#include <algorithm>

#include "core/arena.h"
#include "core/error.h"

namespace headrace {
namespace {

template <class T>
const T* attribute_as(const NodeSpec& node, std::string_view name, std::string_view type) {
  auto it = node.attributes.find(name);
  if (it == node.attributes.end()) return nullptr;
  if (const T* value = std::get_if<T>(&it->second)) return value;
  node.invalid(str("attribute '", name, "' has another type than ", type));
}

}  // namespace

int64_t NodeSpec::int_or(std::string_view attribute, int64_t fallback) const {
  const auto* value = attribute_as<int64_t>(*this, attribute, "int");
  return value ? *value : fallback;
}

float NodeSpec::float_or(std::string_view attribute, float fallback) const {
  const auto* value = attribute_as<double>(*this, attribute, "float");
  return value ? static_cast<float>(*value) : fallback;
}

std::string NodeSpec::string_or(std::string_view attribute, std::string_view fallback) const {
  const auto* value = attribute_as<std::string>(*this, attribute, "string");
  return value ? *value : std::string(fallback);
}

std::vector<int64_t> NodeSpec::ints(std::string_view attribute) const {
  const auto* value = attribute_as<std::vector<int64_t>>(*this, attribute, "ints");
  return value ? *value : std::vector<int64_t>{};
}

std::vector<double> NodeSpec::floats(std::string_view attribute) const {
  const auto* value = attribute_as<std::vector<double>>(*this, attribute, "floats");
  return value ? *value : std::vector<double>{};
}

std::vector<std::string> NodeSpec::strings(std::string_view attribute) const {
  const auto* value = attribute_as<std::vector<std::string>>(*this, attribute, "strings");
  return value ? *value : std::vector<std::string>{};
}

Packed NodeSpec::pack(int64_t bytes, FunctionRef<void(std::byte* to)> fill) const {
  return packs == nullptr ? Packed(bytes, fill) : packs->pack(bytes, fill);
}

void NodeSpec::unsupported(std::string_view reason) const {
  throw UnsupportedOpError(op, name, std::string(reason));
}

void NodeSpec::invalid(std::string_view reason) const {
  fail(ErrorKind::kInvalidModel, op, " (node '", name, "'): ", reason);
}

void OpRun::parallel_ranges(int64_t items, int64_t min_items,
                            FunctionRef<void(int64_t begin, int64_t end, int thread)> range) const {
  if (items <= 0) return;
  int64_t ranges = std::clamp<int64_t>(items / std::max<int64_t>(min_items, 1), 1, threads_);
  if (ranges == 1) return range(0, items, 0);
  parallel(ranges, [&](int64_t task, int thread) {
    range(items * task / ranges, items * (task + 1) / ranges, thread);
  });
}

void OpRun::parallel_requests(FunctionRef<void(size_t request)> one) const {
  constexpr int64_t kMinElements = 4096;
  int64_t elements = 0;
  for (const Segments& input : inputs_) elements += input.present() ? input.elements() : 0;
  for (const Segments& output : outputs_) elements += output.present() ? output.elements() : 0;
  if (elements < kMinElements) {
    for (size_t request = 0; request < requests_; ++request) one(request);
  } else {
    parallel(static_cast<int64_t>(requests_),
             [&](int64_t request, int) { one(static_cast<size_t>(request)); });
  }
}

std::byte* OpRun::scratch(int64_t bytes) const {
  if (scratches_ == kMaxScratch) fail(ErrorKind::kExecution, "an op took too many scratch blocks");
  return scratch_[scratches_++] = arena_.allocate(bytes);
}

void OpRun::release_scratch() const {
  while (scratches_ > 0) arena_.release(scratch_[--scratches_]);
}

namespace {

// Calls op.run_one with views of one Request, which kArity is enough for.
template <size_t kArity>
void run_request(const PerRequestOp& op, const OpRun& run, size_t request) {
  ConstTensorView inputs[kArity];
  TensorView outputs[kArity];
  for (size_t i = 0; i < run.inputs(); ++i) {
    if (run.has_input(i)) inputs[i] = run.input(i).view(request);
  }
  for (size_t i = 0; i < run.outputs(); ++i) {
    if (run.has_output(i)) outputs[i] = run.output(i).view(request);
  }
  op.run_one({inputs, run.inputs()}, {outputs, run.outputs()});
}

}  // namespace

void PerRequestOp::run(const OpRun& run) const {
  // Most ops have few operands, and clearing room for many costs more than a small op does.
  constexpr size_t kFew = 4;
  bool few = run.inputs() <= kFew && run.outputs() <= kFew;
  run.parallel_requests([&](size_t request) {
    few ? run_request<kFew>(*this, run, request) : run_request<kMaxArity>(*this, run, request);
  });
}

void OpRegistry::add(std::string_view op, OpFactory factory) {
  if (!factories_.emplace(op, factory).second) {
    throw std::logic_error(str("op '", op, "' is registered twice; this is a bug"));
  }
}

#if defined(HEADRACE_PLANT_WRONG)
std::unique_ptr<Op> plant_wrong(const NodeSpec& node, std::unique_ptr<Op> right);  // tests/planted
#endif

std::unique_ptr<Op> OpRegistry::make(const NodeSpec& node) const {
  auto it = factories_.find(node.op);
  if (it == factories_.end()) node.unsupported("no kernel for this op");
  if (node.inputs() > PerRequestOp::kMaxArity ||
      node.output_dtypes.size() > PerRequestOp::kMaxArity) {
    node.unsupported(str("more than ", PerRequestOp::kMaxArity, " inputs or outputs"));
  }
#if defined(HEADRACE_PLANT_WRONG)
  return plant_wrong(node, it->second(node));
#else
  return it->second(node);
#endif
}

std::vector<std::string> OpRegistry::names() const {
  std::vector<std::string> names;
  for (const auto& [name, factory] : factories_) names.push_back(name);
  return names;
}

}  // namespace headrace
