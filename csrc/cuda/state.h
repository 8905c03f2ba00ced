// The values of one Batch that runs on a device: the counterpart of runtime/run_state.h.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/arena.h"
#include "cuda/plan.h"

namespace headrace::cuda {

// Reused from Batch to Batch, with its stream and its memory. One thread at a time.
class DeviceState {
 public:
  explicit DeviceState(const DevicePlan& plan);

  // Runs the Batch and waits for its outputs.
  void execute(std::span<const RequestInputs> requests);
  ConstTensorView output(size_t request, size_t output) const;
  // Ends the Batch. False if the stream has failed: the state is then good for nothing.
  bool reset();
  int64_t held_bytes() const { return allocator_.held_bytes(); }

 private:
  // A value's memory on either side; null where it has none.
  struct Memory {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::byte* host_block = nullptr;    // of arena_
    std::byte* device_block = nullptr;  // of allocator_
  };

  Memory& memory(ValueId id) { return memory_[static_cast<size_t>(id)]; }
  const Value& value(ValueId id) const { return program_.values[static_cast<size_t>(id)]; }
  std::span<Shape> shapes_of(ValueId id);
  std::span<int64_t> offsets_of(ValueId id);
  int64_t bytes_of(ValueId id);
  void set_offsets(ValueId id);
  Segments segments(ValueId id, std::byte* data);
  ConstTensorView host_view(ValueId id, size_t request);
  void bind_inputs();
  void infer(const Step& step);
  void send(ValueId id);
  void run_step(size_t s);
  void run_on_host(const Step& step);
  void run_on_device(const Step& step, const CudaOp& kernel);
  void share(const Step& step);
  void fetch_outputs();
  void release(ValueId root);

  const DevicePlan& plan_;
  const Program& program_;
  std::unique_ptr<Stream> stream_;
  CachingAllocator allocator_;
  Staging staging_;
  Arena arena_;
  std::shared_ptr<ThreadPool> pool_;
  std::span<const RequestInputs> requests_;
  std::vector<Memory> memory_;    // per value
  std::vector<Shape> shapes_;     // values x requests
  std::vector<int64_t> offsets_;  // values x (requests + 1)
  std::vector<ConstTensorView> input_views_;
  std::vector<Shape> output_shapes_;
  std::vector<Segments> step_inputs_;
  std::vector<Segments> step_outputs_;
  std::vector<const std::byte*> results_;  // per output, on the host
};

}  // namespace headrace::cuda
