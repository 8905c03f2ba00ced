// The values of one running Batch: their shapes, segments and storage (run_state.cc), and how they
// are taken through chains of ops (run_chains.cc).
#pragma once

#include <span>
#include <vector>

#include "core/arena.h"
#include "core/memory.h"
#include "runtime/chain.h"
#include "runtime/plan.h"

namespace headrace {

// Throws the error again, with the step's op and name in front.
[[noreturn]] void rethrow_at(const Step& step, const Error& error);

// Reused from Batch to Batch, so that its vectors and its arena stop growing. One thread at a time.
class RunState {
 public:
  explicit RunState(const Program& program);

  void execute(std::span<const RequestInputs> requests, ThreadPool& pool, int threads,
               std::vector<StepTime>* profile);
  ConstTensorView output(size_t request, size_t output) const;
  // See Run::take_output.
  Block take_output(size_t output);
  // Ends the Batch: every block goes back to the arena.
  void reset();
  int64_t arena_bytes() const;

 private:
  Segments& value(ValueId id) { return values_[static_cast<size_t>(id)]; }
  std::span<Shape> shapes_of(ValueId id);
  std::span<int64_t> offsets_of(ValueId id);
  void set_offsets(ValueId id);
  void bind_inputs(std::span<const RequestInputs> requests);
  void infer(const Step& step);
  void place(const Step& step);
  bool overwrite(const Step& step);
  void execute_step(const Step& step, ThreadPool& pool, int threads);
  void run_step(const Step& step, ThreadPool& pool, int threads);
  bool execute_chain(std::span<const Step> steps, ThreadPool& pool, int threads);
  size_t execute_images(std::span<const Step> steps, ThreadPool& pool, int threads);
  size_t execute_elements(std::span<const Step> steps, ThreadPool& pool, int threads);
  void infer_link(const Step& step);
  std::span<const Step> infer_images(std::span<const Step> steps, int threads);
  std::span<const Step> infer_elements(std::span<const Step> steps, int64_t& width);
  bool same_images(ValueId id, ValueId as);
  bool same_elements(ValueId id, ValueId as, int64_t& width);
  int64_t map_bytes(const Step& step);
  void place_outliving(std::span<const Step> chain);
  void make_workspaces(int threads);
  void copy_constant(const Step& step);
  void release(ValueId root);
  StepTime describe(const Step& step, int64_t ns);
  int kept_as(ValueId id, int64_t bytes) const;

  const Program& program_;
  Arena arena_;
  size_t requests_ = 0;
  std::vector<Segments> values_;
  std::vector<std::byte*> blocks_;  // per root: its arena block, null if it has none
  std::vector<Block> results_;      // per output: its own memory where it is large
  std::vector<Shape> shapes_;       // values x requests
  std::vector<int64_t> offsets_;    // values x (requests + 1)
  // Of the step that is running; as long as the most inputs and outputs any step has.
  std::vector<ConstTensorView> input_views_;
  std::vector<Shape> output_shapes_;
  std::vector<Segments> step_inputs_;
  std::vector<Segments> step_outputs_;
  std::vector<Shape> constant_shapes_;
  std::vector<int64_t> constant_offsets_;                    // two per constant
  std::vector<std::unique_ptr<ChainWorkspace>> workspaces_;  // per thread, once there was a chain
};

}  // namespace headrace
