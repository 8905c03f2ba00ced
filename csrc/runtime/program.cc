#include "runtime/program.h"

#include <algorithm>

#include "runtime/chain.h"

namespace headrace {
namespace {

bool is_dropped(const ConstTensorView& constant) {
  return constant.data == nullptr && constant.elements() > 0;
}

}  // namespace

ValueId ProgramBuilder::add_input(TensorSpec spec) {
  auto id = static_cast<ValueId>(program_.values.size());
  program_.values.push_back({.dtype = spec.dtype, .name = spec.name, .root = id});
  program_.inputs.push_back(id);
  input_specs_.push_back(std::move(spec));
  return id;
}

ValueId ProgramBuilder::add_constant(std::string name, ConstTensorView data,
                                     std::shared_ptr<const void> owner) {
  auto id = static_cast<ValueId>(program_.values.size());
  program_.values.push_back({.dtype = data.dtype,
                             .name = std::move(name),
                             .constant = true,
                             .shape = data.shape,
                             .data = data,
                             .owner = std::move(owner),
                             .root = id});
  return id;
}

std::vector<ValueId> ProgramBuilder::add_op(NodeSpec node, const std::vector<ValueId>& inputs,
                                            const std::vector<std::string>& output_names,
                                            std::optional<std::vector<Packed>> saved) {
  std::string where = str(node.op, " (node '", node.name, "')");
  for (ValueId id : inputs) {
    if (id != kAbsent && (id < 0 || id >= static_cast<ValueId>(program_.values.size()))) {
      node.invalid(str("input value ", id, " is not defined before the node"));
    }
    const Value* value = id == kAbsent ? nullptr : &program_.values[static_cast<size_t>(id)];
    node.input_dtypes.push_back(value ? value->dtype : DType::kNone);
    node.constants.push_back(value && value->constant ? value->data : ConstTensorView{});
    bool dropped = value && value->constant && is_dropped(value->data);
    if (dropped && (!saved || saved->empty())) {
      fail(ErrorKind::kInvalidPlan, where, ": constant '", value->name,
           "' is not in the saved Plan");
    }
  }
  node.isa = isa_;
  Packs packs = saved ? Packs(std::move(*saved), std::move(where)) : Packs(&pack_memory_);
  node.packs = &packs;
  Step step{.op = node.op,
            .name = node.name,
            .opset = node.opset,
            .kernel = OpRegistry::global().make(node),
            .inputs = inputs};
  step.packs = packs.finish();
  int alias = step.kernel->alias();
  // A constant has one segment, a result one per Request: they cannot share storage.
  step.aliases = alias >= 0 &&
                 !program_.values[static_cast<size_t>(inputs[static_cast<size_t>(alias)])].constant;
  for (size_t i = 0; i < node.output_dtypes.size(); ++i) {
    if (node.output_dtypes[i] == DType::kNone) {
      step.outputs.push_back(kAbsent);
      continue;
    }
    auto id = static_cast<ValueId>(program_.values.size());
    Value value{.dtype = node.output_dtypes[i], .name = output_names.at(i), .root = id};
    if (i == 0 && step.aliases) {
      value.root = program_.values[static_cast<size_t>(inputs[static_cast<size_t>(alias)])].root;
    }
    program_.values.push_back(std::move(value));
    step.outputs.push_back(id);
  }
  step.attributes = std::move(node.attributes);
  program_.packed_bytes += step.kernel->packed_bytes();
  for (const Packed& packed : step.packs) program_.packed_bytes += packed.bytes();
  program_.steps.push_back(std::move(step));
  return program_.steps.back().outputs;
}

void ProgramBuilder::add_output(TensorSpec spec, ValueId value) {
  if (value < 0 || value >= static_cast<ValueId>(program_.values.size())) {
    fail(ErrorKind::kInvalidModel, "output '", spec.name, "': nothing computes it");
  }
  program_.outputs.push_back(value);
  output_specs_.push_back(std::move(spec));
}

void ProgramBuilder::plan_storage() {
  auto root_of = [&](ValueId id) { return program_.values[static_cast<size_t>(id)].root; };
  std::vector<int> last_use(program_.values.size(), -1);
  for (size_t s = 0; s < program_.steps.size(); ++s) {
    const Step& step = program_.steps[s];
    for (const auto* ids : {&step.inputs, &step.outputs}) {
      for (ValueId id : *ids) {
        if (id != kAbsent) last_use[static_cast<size_t>(root_of(id))] = static_cast<int>(s);
      }
    }
  }
  std::vector<bool> kept(program_.values.size(), false);
  for (ValueId id : program_.outputs) {
    auto root = static_cast<size_t>(root_of(id));
    program_.values[root].result = !kept[root];
    kept[root] = true;
  }
  for (size_t v = 0; v < program_.values.size(); ++v) {
    if (program_.values[v].constant) kept[v] = true;
  }
  for (size_t v = 0; v < program_.values.size(); ++v) {
    if (last_use[v] >= 0 && !kept[v]) {
      program_.steps[static_cast<size_t>(last_use[v])].dead.push_back(static_cast<ValueId>(v));
    }
  }
  std::vector<bool> is_input(program_.values.size(), false);
  for (ValueId id : program_.inputs) is_input[static_cast<size_t>(id)] = true;
  for (Step& step : program_.steps) {
    if (step.aliases || step.outputs.empty() || step.outputs[0] == kAbsent) continue;
    for (size_t i = 0; i < step.inputs.size() && step.overwrites < 0; ++i) {
      if (step.inputs[i] == kAbsent || !step.kernel->can_overwrite(i)) continue;
      ValueId root = root_of(step.inputs[i]);
      bool dies_here = std::ranges::count(step.dead, root) == 1;
      auto same_root = [&](ValueId id) { return id != kAbsent && root_of(id) == root; };
      bool read_once = std::ranges::count_if(step.inputs, same_root) == 1;
      bool same_dtype = program_.values[static_cast<size_t>(step.inputs[i])].dtype ==
                        program_.values[static_cast<size_t>(step.outputs[0])].dtype;
      if (dies_here && read_once && same_dtype && !is_input[static_cast<size_t>(root)]) {
        step.overwrites = static_cast<int>(i);
      }
    }
  }
}

void ProgramBuilder::drop_constants() {
  std::vector<bool> read(program_.values.size(), keep_constants_);
  for (const Step& step : program_.steps) {
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      if (step.inputs[i] != kAbsent && !step.kernel->consumes(i)) {
        read[static_cast<size_t>(step.inputs[i])] = true;
      }
    }
  }
  for (ValueId id : program_.outputs) read[static_cast<size_t>(id)] = true;
  for (size_t v = 0; v < program_.values.size(); ++v) {
    Value& value = program_.values[v];
    if (!value.constant) continue;
    if (read[v]) {
      if (is_dropped(value.data)) {
        fail(ErrorKind::kInvalidPlan, "constant '", value.name, "' is not in the saved Plan");
      }
      program_.constant_bytes += value.data.bytes();
    } else {
      value.data = {};
      value.owner.reset();
    }
  }
}

Program ProgramBuilder::finish() {
  plan_storage();
  drop_constants();
  plan_chains(program_);
  program_.signature = Signature(std::move(input_specs_), std::move(output_specs_));
  return std::move(program_);
}

}  // namespace headrace
