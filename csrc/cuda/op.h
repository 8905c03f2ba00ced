// What an op is to a CUDA device: the counterpart of ops/op.h. The op's Step in the Program gives
// the shape rule, which runs on the host as ever; a CudaOp launches the kernels.
//
// A room registers its kernels in one function, in <op>_cuda.cu; registry.cc calls it.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include "core/function_ref.h"
#include "cuda/memory.h"
#include "cuda/products.h"
#include "ops/op.h"

namespace headrace::cuda {

// A node with all its constants, the op that the CPU would run, which outlives what is made here,
// the device to put things on, and who computes products there.
struct CudaNode {
  const NodeSpec& spec;
  const Op& op;
  std::shared_ptr<Device> device;
  Products& products;

  // A copy of host memory on the device.
  DeviceMemory upload(const void* from, int64_t bytes) const { return {device, from, bytes}; }
  template <class T>
  DeviceMemory upload(std::span<const T> from) const {
    return upload(from.data(), static_cast<int64_t>(from.size_bytes()));
  }
  // Constant input `i`; nothing if it is absent.
  DeviceMemory upload_input(size_t i) const {
    if (!spec.is_constant(i)) return {};
    return upload(spec.constants[i].data, spec.constants[i].bytes());
  }
};

// A table that run() fills on the host, for a kernel to read.
template <class T>
struct Table {
  std::span<T> rows;  // pinned memory
  const T* device;    // valid once the table was sent
};

// One op's run over one Batch. Segments are those of ops/op.h, but for their data, which lies on
// the device: views of them may be handed to kernels and not be read.
class CudaRun {
 public:
  using HostInput = FunctionRef<ConstTensorView(size_t input, size_t request)>;

  CudaRun(size_t requests, std::span<const Segments> inputs, std::span<const Segments> outputs,
          HostInput host_input, Stream& stream, CachingAllocator& allocator, Staging& staging)
      : requests_(requests),
        inputs_(inputs),
        outputs_(outputs),
        host_input_(host_input),
        stream_(stream),
        allocator_(allocator),
        staging_(staging) {}

  size_t requests() const { return requests_; }
  size_t inputs() const { return inputs_.size(); }
  size_t outputs() const { return outputs_.size(); }
  bool has_input(size_t i) const { return i < inputs_.size() && inputs_[i].present(); }
  const Segments& input(size_t i) const { return inputs_[i]; }
  bool has_output(size_t i) const { return i < outputs_.size() && outputs_[i].present(); }
  const Segments& output(size_t i) const { return outputs_[i]; }
  Stream& stream() const { return stream_; }

  // An input for which CudaOp::on_host is true, where the host can read it.
  ConstTensorView host_input(size_t i, size_t request) const { return host_input_(i, request); }

  // The first element of a value, and of one Request's segment; null if it is absent.
  template <class T>
  const T* in(size_t i) const {
    return has_input(i) ? reinterpret_cast<const T*>(inputs_[i].data) : nullptr;
  }
  template <class T>
  const T* in(size_t i, size_t request) const {
    return has_input(i) ? static_cast<const T*>(inputs_[i].view(request).data) : nullptr;
  }
  template <class T>
  T* out(size_t o) const {
    return has_output(o) ? reinterpret_cast<T*>(outputs_[o].data) : nullptr;
  }
  template <class T>
  T* out(size_t o, size_t request) const {
    return has_output(o) ? static_cast<T*>(outputs_[o].view(request).data) : nullptr;
  }

  // Device memory that lives until the op's run ends.
  std::byte* scratch(int64_t bytes) {
    if (scratches_ == kMaxScratch) too_many();
    return scratch_[scratches_++] = allocator_.allocate(bytes);
  }
  // A table of `count` rows; fill it, then send() it, then launch.
  template <class T>
  Table<T> table(size_t count) {
    auto bytes = static_cast<int64_t>(count * sizeof(T));
    auto* host = reinterpret_cast<T*>(staging_.take(bytes));
    return {{host, count}, reinterpret_cast<const T*>(scratch(bytes))};
  }
  template <class T>
  void send(const Table<T>& table) {
    stream_.copy_to_device(const_cast<T*>(table.device), table.rows.data(),
                           static_cast<int64_t>(table.rows.size_bytes()));
  }

  // Zeros on the host, for run() itself, that live until the Batch ends.
  template <class T>
  std::span<T> host_scratch(size_t count) {
    auto* memory = reinterpret_cast<T*>(staging_.take(static_cast<int64_t>(count * sizeof(T))));
    std::fill_n(memory, count, T{});
    return {memory, count};
  }

  // Called by the executor when the op has launched its kernels, and by ops that want no more of it
  // before: what comes later on the stream may have the memory.
  void release_scratch() {
    while (scratches_ > 0) allocator_.release(scratch_[--scratches_]);
  }

 private:
  static constexpr int kMaxScratch = 8;
  [[noreturn]] static void too_many();

  size_t requests_;
  std::span<const Segments> inputs_;
  std::span<const Segments> outputs_;
  HostInput host_input_;
  Stream& stream_;
  CachingAllocator& allocator_;
  Staging& staging_;
  std::byte* scratch_[kMaxScratch] = {};
  int scratches_ = 0;
};

// An op of a DevicePlan. Immutable once made; any number of Batches may run it at once, each on its
// own stream. The bits of a Request's outputs depend on it alone, as on the CPU: a kernel's sums
// have a fixed order that no batch size changes, and nothing is added atomically in floats.
class CudaOp {
 public:
  virtual ~CudaOp() = default;
  // Launches what computes every output of every Request.
  virtual void run(CudaRun& run) const = 0;
  // False if the kernels never read this input: it is a parameter, or a constant that the op keeps
  // on the device in its own form. run() then finds no data there.
  virtual bool reads(size_t /*input*/) const { return true; }
  // True if the op's shape rule or run() looks at this input's elements on the host, as it must at
  // indices, so that none can lead a kernel astray. It cannot be a result of the device.
  virtual bool on_host(size_t /*input*/) const { return false; }
  // Device memory that the op holds.
  virtual int64_t device_bytes() const { return 0; }
};

using CudaOpFactory = std::unique_ptr<CudaOp> (*)(const CudaNode&);

// Op name -> factory. Factories throw Error(kUnsupportedOp) for a variant they have no kernel for.
class CudaRegistry {
 public:
  static const CudaRegistry& global();

  void add(std::string_view op, CudaOpFactory factory);
  bool has(std::string_view op) const { return factories_.contains(op); }
  // Throws Error(kUnsupportedOp).
  std::unique_ptr<CudaOp> make(const CudaNode& node) const;
  std::vector<std::string> names() const;

 private:
  std::map<std::string, CudaOpFactory, std::less<>> factories_;
};

// Refuses the node unless all its present inputs and outputs have this dtype.
void require_dtype(const NodeSpec& spec, DType dtype);

}  // namespace headrace::cuda
