#include "runtime/chain.h"

#include <algorithm>
#include <utility>

namespace headrace {
namespace {

int64_t width_of(const Segments& segments) {
  const Shape& shape = segments.shape(0);
  return shape.rank() > 0 ? shape[shape.rank() - 1] : 1;
}

bool makes_one_value(const Step& step) {
  return !step.aliases && !step.outputs.empty() && step.outputs[0] != kAbsent &&
         std::all_of(step.outputs.begin() + 1, step.outputs.end(),
                     [](ValueId id) { return id == kAbsent; });
}

bool varies(const Program& program, ValueId id) {
  return id != kAbsent && !program.values[static_cast<size_t>(id)].constant;
}

// The step may be in a chain of rows or images: it makes one value, of an input 0 that is no
// constant.
bool is_link(const Program& program, const Step& step) {
  return makes_one_value(step) && !step.inputs.empty() && varies(program, step.inputs[0]);
}

bool is_element_wise(const Program& program, const Step& step) {
  return makes_one_value(step) && step.kernel->element_wise() &&
         std::ranges::any_of(step.inputs, [&](ValueId id) { return varies(program, id); });
}

bool is_row_wise(const Program& program, const Step& step) {
  return is_link(program, step) && step.kernel->row_wise();
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
  int images = 0;
  int elements = 0;
  for (size_t s = steps.size(); s-- > 0;) {
    images = is_link(program, steps[s]) && steps[s].kernel->image_wise() ? images + 1 : 0;
    elements = is_element_wise(program, steps[s]) ? elements + 1 : 0;
    steps[s].images = images;
    steps[s].elements = elements;
  }
}

int64_t chain_rows(const Segments& segments) {
  return segments.elements() / std::max<int64_t>(width_of(segments), 1);
}

ChainWorkspace::ChainWorkspace(const Program& program)
    : program_(program), own_(program.values.size(), nullptr) {
  size_t inputs = 0;
  for (const Step& step : program.steps) inputs = std::max(inputs, step.inputs.size());
  slices_.resize(inputs + 1);
  inputs_.resize(inputs);
  outputs_.resize(1);
}

void ChainWorkspace::cut(const Segments& whole, const ChainPart& part, Slice& to) const {
  to.shapes.clear();
  to.offsets.assign(1, 0);
  int64_t first = 0;
  auto add = [&](const Shape& shape, int64_t begin) {
    if (to.shapes.empty()) first = begin;
    to.shapes.push_back(shape);
    to.offsets.push_back(to.offsets.back() + shape.elements());
  };
  if (part.images) {
    int64_t image = 0;
    for (size_t r = 0; r < whole.shapes.size(); ++r) {
      Shape shape = whole.shapes[r];
      int64_t begin = std::max<int64_t>(part.begin - image, 0);
      int64_t end = std::min(part.end - image, shape[0]);
      image += shape[0];
      if (begin >= end) continue;
      shape[0] = end - begin;
      add(shape, whole.offsets[r] + shape.elements(1, shape.rank()) * begin);
    }
  } else {
    int64_t width = part.width > 0 ? part.width : width_of(whole);
    add({part.end - part.begin, width}, part.begin * width);
  }
  to.segments = {.dtype = whole.dtype,
                 .data = whole.data ? whole.data + first * size_of(whole.dtype) : nullptr,
                 .shapes = to.shapes,
                 .offsets = to.offsets,
                 .shared = false};
}

// Memory of the chain's own for the step's output: that of an input where the step may write there.
std::byte* ChainWorkspace::room_for(const Step& step, const Segments& output) {
  if (step.overwrites >= 0) {
    auto input = static_cast<size_t>(step.overwrites);
    std::byte*& own = own_[static_cast<size_t>(step.inputs[input])];
    bool is_input = own != nullptr && own == inputs_[input].data;
    if (is_input && std::ranges::equal(inputs_[input].offsets, output.offsets)) {
      return std::exchange(own, nullptr);
    }
  }
  return arena_.allocate(output.elements() * size_of(output.dtype));
}

void ChainWorkspace::release(ValueId root) {
  std::byte*& own = own_[static_cast<size_t>(root)];
  if (own != nullptr) arena_.release(own);
  own = nullptr;
}

void ChainWorkspace::run_step(const Step& step, std::span<const Segments> values,
                              const ChainPart& part, ThreadPool& pool) {
  std::span inputs(inputs_.data(), step.inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    ValueId id = step.inputs[i];
    if (id == kAbsent) {
      inputs[i] = {};
      continue;
    }
    const Segments& whole = values[static_cast<size_t>(id)];
    inputs[i] = whole;
    if (!whole.present() || whole.shared) continue;
    cut(whole, part, slices_[i]);
    inputs[i] = slices_[i].segments;
    if (inputs[i].data == nullptr) inputs[i].data = own_[static_cast<size_t>(id)];
  }
  auto made = static_cast<size_t>(step.outputs[0]);
  cut(values[made], part, slices_.back());
  Segments& output = outputs_[0];
  output = slices_.back().segments;
  const bool own = output.data == nullptr;
  if (own) {
    own_[made] = room_for(step, output);
    output.data = own_[made];
  }
  OpRun run(output.shapes.size(), inputs, outputs_, pool, 1, arena_,
            !own && is_streamed(values[made]));
  try {
    step.kernel->run(run);
  } catch (...) {
    run.release_scratch();
    throw;
  }
  run.release_scratch();
}

void ChainWorkspace::run(std::span<const Step> steps, std::span<const Segments> values,
                         const ChainPart& part, ThreadPool& pool) {
  try {
    for (const Step& step : steps) {
      run_step(step, values, part, pool);
      for (ValueId root : step.dead) release(root);
    }
  } catch (...) {
    // The workspace serves other Batches after this one.
    for (size_t root = 0; root < own_.size(); ++root) release(static_cast<ValueId>(root));
    throw;
  }
}

}  // namespace headrace
