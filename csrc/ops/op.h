// What an op is to the runtime: a node of the Model, prepared once per Plan, run once per Batch.
//
// Every room under ops/ implements this contract and registers its ops in one function that
// registry.cc calls. Rooms never include each other's insides; what two of them need lives in core/
// or in ops/simd/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/copy.h"
#include "core/cpu.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "ops/pack.h"

namespace headrace {

class Arena;

using Attribute = std::variant<int64_t, double, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;
using Attributes = std::map<std::string, Attribute, std::less<>>;

// A node as the compiler hands it over. Attributes are complete: the compiler has written ONNX's
// defaults out wherever they differ from "absent".
class NodeSpec {
 public:
  std::string op;     // "Softmax"; with the domain in front if it is not ONNX's: "headrace.Linear"
  std::string name;   // the node's name in the Model, for messages
  int64_t opset = 0;  // opset version of the op's domain
  Attributes attributes;
  std::vector<DType> input_dtypes;         // kNone for an absent optional input
  std::vector<DType> output_dtypes;        // kNone for an output nobody wants
  std::vector<ConstTensorView> constants;  // per input: its value if it is constant, else absent
  Isa isa = Isa::kReference;
  Packs* packs = nullptr;  // where `pack` keeps what it made; may be absent

  size_t inputs() const { return input_dtypes.size(); }
  bool has_input(size_t i) const { return i < inputs() && input_dtypes[i] != DType::kNone; }
  bool is_constant(size_t i) const { return i < constants.size() && constants[i].present(); }

  bool has(std::string_view attribute) const { return attributes.contains(attribute); }
  // The attribute's value, or `fallback` if it is absent. Throw Error(kInvalidModel) if it has
  // another type than asked for.
  int64_t int_or(std::string_view attribute, int64_t fallback) const;
  float float_or(std::string_view attribute, float fallback) const;
  std::string string_or(std::string_view attribute, std::string_view fallback) const;
  std::vector<int64_t> ints(std::string_view attribute) const;         // empty if absent
  std::vector<double> floats(std::string_view attribute) const;        // empty if absent
  std::vector<std::string> strings(std::string_view attribute) const;  // empty if absent

  // Memory for what the op makes of its constants: `fill` writes all of it, unless it comes out of
  // a saved Plan. How many blocks a factory packs, and of which sizes, may depend on anything but
  // the contents of constants.
  Packed pack(int64_t bytes, FunctionRef<void(std::byte* to)> fill) const;

  // Throws Error(kUnsupportedOp) with the node's op and name in front of the reason.
  [[noreturn]] void unsupported(std::string_view reason) const;
  // Throws Error(kInvalidModel) likewise.
  [[noreturn]] void invalid(std::string_view reason) const;
};

// One value of a running Batch: a segment per Request, back to back, so that an op which works on
// rows sees the rows of all Requests as one block.
struct Segments {
  DType dtype = DType::kNone;
  std::byte* data = nullptr;         // base of segment 0; 64-byte aligned unless it is an input
  std::span<const Shape> shapes;     // per Request
  std::span<const int64_t> offsets;  // in elements, from data; one more than shapes
  bool shared = false;               // a constant: one segment that every Request reads

  bool present() const { return dtype != DType::kNone; }
  const Shape& shape(size_t request) const { return shapes[shared ? 0 : request]; }
  // Elements of all segments together.
  int64_t elements() const { return offsets.back(); }
  TensorView view(size_t request) const {
    size_t i = shared ? 0 : request;
    return {dtype, shapes[i], data + offsets[i] * size_of(dtype)};
  }
};

// True if a value is so large that it had better be stored past the caches (core/copy.h).
inline bool is_streamed(const Segments& segments) {
  return segments.present() && segments.elements() * size_of(segments.dtype) >= kStreamBytes;
}

// One op's run over one Batch.
class OpRun {
 public:
  OpRun(size_t requests, std::span<const Segments> inputs, std::span<const Segments> outputs,
        ThreadPool& pool, int threads, Arena& arena, bool past_caches)
      : requests_(requests),
        inputs_(inputs),
        outputs_(outputs),
        pool_(pool),
        threads_(threads),
        arena_(arena),
        past_caches_(past_caches) {}

  size_t requests() const { return requests_; }
  size_t inputs() const { return inputs_.size(); }
  bool has_input(size_t i) const { return i < inputs_.size() && inputs_[i].present(); }
  // An input's view must not be written through.
  const Segments& input(size_t i) const { return inputs_[i]; }
  size_t outputs() const { return outputs_.size(); }
  bool has_output(size_t i) const { return i < outputs_.size() && outputs_[i].present(); }
  const Segments& output(size_t i) const { return outputs_[i]; }

  // Threads worth splitting for; task's `thread` argument is below this.
  int threads() const { return threads_; }
  // Runs tasks over the Plan's threads; see ThreadPool::run. Tasks write disjoint outputs.
  void parallel(int64_t tasks, Task task) const {
    if (threads_ > 1) return pool_.run(tasks, task, threads_);
    for (int64_t i = 0; i < tasks; ++i) task(i, 0);
  }
  // Splits [0, items) into contiguous ranges of at least `min_items` (so small work stays on this
  // thread) and calls range(begin, end, thread) for each.
  void parallel_ranges(int64_t items, int64_t min_items,
                       FunctionRef<void(int64_t begin, int64_t end, int thread)> range) const;
  // Calls one(request) for every Request, spread over the threads where the Batch's inputs and
  // outputs are large enough to pay for waking them.
  void parallel_requests(FunctionRef<void(size_t request)> one) const;

  // True if output 0, of which this run may write a part, is so large that its elements had better
  // be stored past the caches; unless it lies where an input does.
  bool stores_past_caches() const { return past_caches_; }

  // Memory that lives until the op's run ends; 64-byte aligned. Only outside tasks.
  std::byte* scratch(int64_t bytes) const;
  template <class T>
  T* scratch_of(int64_t elements) const {
    return reinterpret_cast<T*>(scratch(elements * static_cast<int64_t>(sizeof(T))));
  }
  // Called by the executor when the op is done.
  void release_scratch() const;

 private:
  static constexpr int kMaxScratch = 8;
  size_t requests_;
  std::span<const Segments> inputs_;
  std::span<const Segments> outputs_;
  ThreadPool& pool_;
  int threads_;
  Arena& arena_;
  bool past_caches_;
  mutable std::byte* scratch_[kMaxScratch] = {};
  mutable int scratches_ = 0;
};

using InputViews = std::span<const ConstTensorView>;
using OutputViews = std::span<const TensorView>;

// An op of a Plan. Immutable once made, so that any number of Batches may run it at once.
// Nothing in infer() or run() may allocate from the heap.
class Op {
 public:
  virtual ~Op() = default;

  // Writes the shape of every output for one Request. May read the inputs' data (Reshape does).
  // Throws Error(kShapeMismatch) where the shapes do not fit; the message need not name the node.
  virtual void infer(InputViews inputs, std::span<Shape> outputs) const = 0;

  // Computes every output of every Request of the Batch. The bits of an output depend on its own
  // Request alone: never on the others, their number, the order or the thread count.
  virtual void run(const OpRun& run) const = 0;

  // The input whose storage output 0 takes over unchanged (Reshape, Identity), or -1. Such an op's
  // run() is never called.
  virtual int alias() const { return -1; }

  // True if output 0 may be computed in place of this input: same dtype and elements in the same
  // order, each read before it is written. The executor does so where the input is not used again.
  virtual bool can_overwrite(size_t /*input*/) const { return false; }

  // True if output 0 has the rows of input 0 (all dims but the last), each made from that row, the
  // same row of the other inputs that are not constants, and constants, all of them for every row.
  // Such an op may be run on some of the rows, as a matrix, and gets its constants whole.
  virtual bool row_wise() const { return false; }

  // True if output 0 has the leading dim of input 0, and each of its slices along it, an image say,
  // is made from that slice of input 0, the same slice of the other inputs that are not constants,
  // and constants, all of them for every slice. Such an op may be run on some of the slices.
  virtual bool image_wise() const { return false; }

  // True if every element of output 0 is made from the elements that broadcasting puts in its place
  // and nothing else. Such an op may be run on some of the elements, as a matrix.
  virtual bool element_wise() const { return false; }

  // True if the op has packed what it needs from this constant input. Plans drop constants that
  // nobody keeps; such an input is absent in infer() and run(). Saved Plans do not hold it either:
  // its elements may be read only while NodeSpec::pack fills its memory.
  virtual bool consumes(size_t /*input*/) const { return false; }

  // Bytes of weights and tables the op holds beside those it packed.
  virtual int64_t packed_bytes() const { return 0; }
};

// Base of ops that run one Request at a time. Requests are spread over the threads.
class PerRequestOp : public Op {
 public:
  void run(const OpRun& run) const final;
  // Called for one Request; runs on any thread.
  virtual void run_one(InputViews inputs, OutputViews outputs) const = 0;
  // Inputs and outputs an op may have; ops of more are refused at load.
  static constexpr size_t kMaxArity = 64;
};

using OpFactory = std::unique_ptr<Op> (*)(const NodeSpec&);

// Op name -> factory. Factories throw Error(kUnsupportedOp) for a variant they cannot run.
class OpRegistry {
 public:
  // The registry with the ops of every room.
  static const OpRegistry& global();

  void add(std::string_view op, OpFactory factory);
  // Throws Error(kUnsupportedOp) for an unknown op.
  std::unique_ptr<Op> make(const NodeSpec& node) const;
  std::vector<std::string> names() const;

 private:
  std::map<std::string, OpFactory, std::less<>> factories_;
};

}  // namespace headrace
