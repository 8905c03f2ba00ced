#include "runtime/row_chain.h"

#include <algorithm>

namespace headrace {
namespace {

int64_t width_of(const Segments& segments) {
  const Shape& shape = segments.shape(0);
  return shape.rank() > 0 ? shape[shape.rank() - 1] : 1;
}

// The step may be in a chain: its one output has the rows of its input 0.
bool is_row_wise(const Program& program, const Step& step) {
  auto constant = [&](ValueId id) { return program.values[static_cast<size_t>(id)].constant; };
  bool one_output = !step.outputs.empty() && step.outputs[0] != kAbsent &&
                    std::all_of(step.outputs.begin() + 1, step.outputs.end(),
                                [](ValueId id) { return id == kAbsent; });
  return one_output && !step.aliases && step.kernel->row_wise() && !step.inputs.empty() &&
         step.inputs[0] != kAbsent && !constant(step.inputs[0]);
}

}  // namespace

void plan_chains(Program& program) {
  std::vector<Step>& steps = program.steps;
  for (size_t first = 0; first < steps.size();) {
    // A link's input 0 is made within the chain, so that all of its values have the same rows.
    std::vector<ValueId> made;
    size_t end = first;
    for (; end < steps.size() && is_row_wise(program, steps[end]); ++end) {
      if (end > first && !std::ranges::count(made, steps[end].inputs[0])) break;
      made.push_back(steps[end].outputs[0]);
    }
    steps[first].chain = static_cast<int>(std::max<size_t>(end - first, 1));
    // A value of which nobody outside the chain hears needs no memory of the Batch.
    for (size_t s = first; s < end; ++s) {
      for (ValueId root : steps[s].dead) {
        if (std::ranges::count(made, root)) program.values[static_cast<size_t>(root)].inner = true;
      }
    }
    first = std::max(end, first + 1);
  }
}

int64_t chain_rows(const Segments& segments) {
  return segments.elements() / std::max<int64_t>(width_of(segments), 1);
}

RowWorkspace::RowWorkspace(const Program& program)
    : program_(program), own_(program.values.size(), nullptr) {
  size_t inputs = 0;
  for (const Step& step : program.steps) inputs = std::max(inputs, step.inputs.size());
  slices_.resize(inputs + 1);
  inputs_.resize(inputs);
  outputs_.resize(1);
}

const Segments& RowWorkspace::slice(const Segments& whole, std::byte* own, int64_t begin,
                                    int64_t end, Slice& to) const {
  int64_t width = width_of(whole);
  to.shape = {end - begin, width};
  to.offsets[0] = 0;
  to.offsets[1] = (end - begin) * width;
  to.segments = {.dtype = whole.dtype,
                 .data = own ? own : whole.data + begin * width * size_of(whole.dtype),
                 .shapes = {&to.shape, 1},
                 .offsets = to.offsets,
                 .shared = false};
  return to.segments;
}

void RowWorkspace::run_step(const Step& step, std::span<const Segments> values, int64_t begin,
                            int64_t end, ThreadPool& pool) {
  std::span inputs(inputs_.data(), step.inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    ValueId id = step.inputs[i];
    if (id == kAbsent) {
      inputs[i] = {};
      continue;
    }
    const Segments& whole = values[static_cast<size_t>(id)];
    bool rows = whole.present() && !whole.shared;
    inputs[i] = rows ? slice(whole, own_[static_cast<size_t>(id)], begin, end, slices_[i]) : whole;
  }
  auto made = static_cast<size_t>(step.outputs[0]);
  const Segments& whole = values[made];
  if (program_.values[made].inner) {
    own_[made] = arena_.allocate((end - begin) * width_of(whole) * size_of(whole.dtype));
  }
  outputs_[0] = slice(whole, own_[made], begin, end, slices_.back());
  OpRun run(1, inputs, outputs_, pool, 1, arena_);
  step.kernel->run(run);
  run.release_scratch();
}

void RowWorkspace::run(std::span<const Step> steps, std::span<const Segments> values, int64_t begin,
                       int64_t end, ThreadPool& pool) {
  for (const Step& step : steps) {
    run_step(step, values, begin, end, pool);
    for (ValueId root : step.dead) {
      std::byte*& own = own_[static_cast<size_t>(root)];
      if (own != nullptr) arena_.release(own);
      own = nullptr;
    }
  }
}

}  // namespace headrace
