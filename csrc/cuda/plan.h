// A Program on a device: the counterpart of runtime/plan.h and run_state.h.
//
// What is data runs on the device, what is arithmetic on shapes on the host: a step all of whose
// inputs are constants, or results of such steps, and Shape itself, runs its CPU kernel and has its
// result sent where a kernel reads it. Every other step needs a CUDA kernel; where one lacks the
// Plan is refused, node by node, and never run elsewhere instead.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cuda/op.h"
#include "runtime/plan.h"

namespace headrace::cuda {

// The nodes of a Program that the device cannot run.
class RefusedOps : public Error {
 public:
  struct Node {
    std::string op;
    std::string name;
    std::string reason;
  };
  explicit RefusedOps(std::vector<Node> nodes);
  const std::vector<Node>& nodes() const { return nodes_; }

 private:
  std::vector<Node> nodes_;
};

class DevicePlan;
class DeviceState;

// A finished Batch: lends its outputs until it is destroyed.
class DeviceRun {
 public:
  DeviceRun(DevicePlan* plan, std::unique_ptr<DeviceState> state);
  ~DeviceRun();
  DeviceRun(DeviceRun&&) noexcept;
  DeviceRun& operator=(DeviceRun&&) = delete;

  ConstTensorView output(size_t request, size_t output) const;
  DeviceState& state() const { return *state_; }

 private:
  DevicePlan* plan_;
  std::unique_ptr<DeviceState> state_;
};

// Where a step runs.
enum class Place : uint8_t { kHost, kDevice, kAlias };

struct DeviceStep {
  Place place = Place::kHost;
  std::unique_ptr<CudaOp> kernel;  // of kDevice
};

// What the executor knows of a value before any shape is.
struct DeviceValue {
  bool on_host = false;    // a constant, or the result of a step on the host
  bool on_device = false;  // some kernel reads it there, or it is made there
  int input = -1;          // the Model's input whose elements it has, unchanged
  DeviceMemory constant;   // a constant's copy, if on_device
};

class DevicePlan {
 public:
  // The Program must have kept its constants; what no step on the host reads is let go.
  // Throws RefusedOps, or Error(kBackendUnavailable) where cuBLASLt is asked for and not there.
  DevicePlan(Program program, std::shared_ptr<Device> device, ProductSettings settings = {});
  ~DevicePlan();

  const Program& program() const { return program_; }
  Device& device() const { return *device_; }
  const DeviceStep& step(size_t i) const { return steps_[i]; }
  // Device memory of weights, and of what idle Batches keep.
  int64_t weight_bytes() const;
  int64_t held_bytes();
  size_t device_steps() const;
  const Products& products() const { return *products_; }

  // As Plan::run. Safe to call from any number of threads; each Batch has a stream of its own.
  DeviceRun run(std::span<const RequestInputs> requests);

 private:
  friend class DeviceRun;
  friend class DeviceState;
  void place_steps();
  void place_step(size_t s, std::vector<RefusedOps::Node>& refused);
  bool runs_on_host(const Step& step) const;
  void need_on_device(size_t s, std::vector<RefusedOps::Node>& refused);
  void send_constants();
  NodeSpec spec_of(const Step& step) const;
  void give_back(std::unique_ptr<DeviceState> state);
  DeviceValue& value(ValueId id) { return values_[static_cast<size_t>(id)]; }
  const DeviceValue& value(ValueId id) const { return values_[static_cast<size_t>(id)]; }

  Program program_;
  std::shared_ptr<Device> device_;
  std::unique_ptr<Products> products_;
  std::vector<DeviceStep> steps_;
  std::vector<DeviceValue> values_;
  std::mutex idle_mutex_;
  std::vector<std::unique_ptr<DeviceState>> idle_;
};

}  // namespace headrace::cuda
