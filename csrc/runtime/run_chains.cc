// How a RunState takes its values through chains of ops (chain.h).
#include <algorithm>

#include "runtime/run_state.h"

namespace headrace {
namespace {

// Rows that a chain takes through at a time: enough to use packed weights well, few enough that
// what the ops hand each other stays in a core's cache.
constexpr int64_t kChainRows = 112;
// Rows per thread from which on it is better that each thread reads all weights.
constexpr int64_t kMinChainRows = 24;

// The largest map of the images that a thread takes through a chain at a time: what the ops hand
// each other then stays in the caches. Within that, more images read weights less often.
constexpr int64_t kMapBytes = 4 << 20;
// Pixels per thread below which not every thread should read all weights.
constexpr int64_t kMinChainPixels = 112;
// Where threads do not share the images evenly, each should have as many as this.
constexpr int64_t kUnevenImages = 4;

// Elements that a chain takes through at a time: few enough for some values of them to fit a core's
// second cache, many enough to outweigh what each step does first.
constexpr int64_t kChainElements = 16384;
// Values of fewer elements stay in the caches from one op to the next anyway.
constexpr int64_t kMinChainElements = 65536;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void RunState::infer_link(const Step& step) {
  try {
    infer(step);
  } catch (const Error& error) {
    rethrow_at(step, error);
  }
}

// Memory of the Batch for what steps behind the chain, or the caller, will read.
void RunState::place_outliving(std::span<const Step> chain) {
  for (size_t s = 0; s < chain.size(); ++s) {
    ValueId made = chain[s].outputs[0];
    bool dies = std::ranges::any_of(chain.subspan(s), [&](const Step& step) {
      return std::ranges::count(step.dead, made) > 0;
    });
    if (!dies) place(chain[s]);
  }
}

void RunState::make_workspaces(int threads) {
  while (static_cast<int>(workspaces_.size()) < threads) {
    workspaces_.push_back(std::make_unique<ChainWorkspace>(program_));
  }
}

// False, and nothing done, where the rows are too few for it.
bool RunState::execute_chain(std::span<const Step> steps, ThreadPool& pool, int threads) {
  const int64_t rows = chain_rows(value(steps.front().inputs[0]));
  if (rows < kMinChainRows * threads) return false;
  for (const Step& step : steps) {
    infer_link(step);
    ValueId output = step.outputs[0];
    if (!program_.values[static_cast<size_t>(output)].inner) place(step);
  }
  make_workspaces(threads);
  int64_t blocks = ceil_div(ceil_div(rows, kChainRows), threads) * threads;
  auto run_block = [&](int64_t block, int thread) {
    ChainPart part{false, rows * block / blocks, rows * (block + 1) / blocks};
    workspaces_[static_cast<size_t>(thread)]->run(steps, values_, part, pool);
  };
  pool.run(blocks, run_block, threads);
  for (const Step& step : steps) {
    for (ValueId root : step.dead) release(root);
  }
  return true;
}

// True if both values have the same number of images in every Request.
bool RunState::same_images(ValueId id, ValueId as) {
  for (size_t r = 0; r < requests_; ++r) {
    if (shapes_of(id)[r].rank() < 1 || shapes_of(id)[r][0] != shapes_of(as)[r][0]) return false;
  }
  return true;
}

// Infers the first of `steps` that keep the images apart and have many pixels, and returns them.
std::span<const Step> RunState::infer_images(std::span<const Step> steps, int threads) {
  ValueId first = steps.front().inputs[0];
  size_t count = 0;
  for (const Step& step : steps) {
    infer_link(step);
    if (!same_images(step.inputs[0], first) || !same_images(step.outputs[0], first)) break;
    if (chain_rows(value(step.outputs[0])) < kMinChainPixels * threads) break;
    ++count;
  }
  return steps.first(count);
}

// Bytes of the larger of what the step reads first and what it writes, over all images.
int64_t RunState::map_bytes(const Step& step) {
  auto bytes = [&](ValueId id) { return value(id).elements() * size_of(value(id).dtype); };
  return std::max(bytes(step.inputs[0]), bytes(step.outputs[0]));
}

// Each thread takes some of its images at a time through some of the first of `steps`. Returns how
// many; 0, and nothing done, where that is not worth it.
size_t RunState::execute_images(std::span<const Step> steps, ThreadPool& pool, int threads) {
  int64_t images = 0;
  for (const Shape& shape : shapes_of(steps.front().inputs[0])) {
    if (shape.rank() < 1) return 0;
    images += shape[0];
  }
  // A lone image is worked on by all threads.
  if (images < 2 || (images % threads != 0 && images < kUnevenImages * threads)) return 0;
  std::span<const Step> chain = infer_images(steps, threads);
  int64_t largest = 1;
  for (const Step& step : chain) largest = std::max(largest, map_bytes(step));
  const int64_t room = kMapBytes * images;  // for a map of one image times the images together
  const int64_t most = ceil_div(images, threads);
  const int64_t together = std::clamp<int64_t>(room / largest, 1, most);
  // Steps behind the last that have no room for one image more are better off with more of them.
  while (together < most && map_bytes(chain.back()) * (together + 1) <= room) {
    chain = chain.first(chain.size() - 1);
  }
  if (chain.size() < 2) return 0;
  place_outliving(chain);
  make_workspaces(threads);
  const int64_t parts = std::min(ceil_div(ceil_div(images, together), threads) * threads, images);
  auto run_part = [&](int64_t i, int thread) {
    ChainPart part{true, images * i / parts, images * (i + 1) / parts};
    workspaces_[static_cast<size_t>(thread)]->run(chain, values_, part, pool);
  };
  pool.run(parts, run_part, threads);
  for (const Step& step : chain) {
    for (ValueId root : step.dead) release(root);
  }
  return chain.size();
}

// True if a step that makes value `as` reads, for each of its elements, this value's at the same
// place, or a constant that is one number or one row for all. The row then is the `width`.
bool RunState::same_elements(ValueId id, ValueId as, int64_t& width) {
  if (id == kAbsent || !value(id).present()) return true;
  if (!value(id).shared) return std::ranges::equal(offsets_of(id), offsets_of(as));
  const Shape& shape = value(id).shape(0);
  const int64_t elements = shape.elements();
  if (elements == 1) return true;
  if (shape[shape.rank() - 1] != elements || elements > kChainElements) return false;
  if (width != 1 && width != elements) return false;
  width = elements;  // and the last dim of `as`, or nothing could have been inferred
  return true;
}

// Infers the first of `steps` whose values have the same elements, and returns them. Rows of
// `width` elements tell them where they are.
std::span<const Step> RunState::infer_elements(std::span<const Step> steps, int64_t& width) {
  ValueId first = steps.front().outputs[0];
  size_t count = 0;
  for (const Step& step : steps) {
    infer_link(step);
    ValueId made = step.outputs[0];
    int64_t row = width;
    if (!std::ranges::equal(offsets_of(made), offsets_of(first)) ||
        !std::ranges::all_of(step.inputs,
                             [&](ValueId id) { return same_elements(id, made, row); })) {
      break;
    }
    width = row;
    ++count;
  }
  return steps.first(count);
}

// Each thread takes some elements at a time through some of the first of `steps`. Returns how many;
// 0, and nothing done, where that is not worth it.
size_t RunState::execute_elements(std::span<const Step> steps, ThreadPool& pool, int threads) {
  bool large = std::ranges::any_of(steps.front().inputs, [&](ValueId id) {
    return id != kAbsent && value(id).present() && value(id).elements() >= kMinChainElements;
  });
  if (!large) return 0;
  int64_t width = 1;
  std::span<const Step> chain = infer_elements(steps, width);
  if (chain.size() < 2) return 0;
  place_outliving(chain);
  make_workspaces(threads);
  const int64_t rows = value(chain.front().outputs[0]).elements() / width;
  const int64_t together = std::max<int64_t>(kChainElements / width, 1);
  auto run_part = [&](int64_t i, int thread) {
    ChainPart part{false, together * i, std::min(together * (i + 1), rows), width};
    workspaces_[static_cast<size_t>(thread)]->run(chain, values_, part, pool);
  };
  pool.run(ceil_div(rows, together), run_part, threads);
  for (const Step& step : chain) {
    for (ValueId root : step.dead) release(root);
  }
  return chain.size();
}

}  // namespace headrace
