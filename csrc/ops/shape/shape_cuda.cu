// Transpose, Slice and their kin, which read one input in another order, and Concat and Split.
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/node_inputs.h"
#include "ops/shape/strided_copy.h"

namespace headrace::cuda {
namespace {

template <class T>
__global__ void strided_kernel(const StridedLoop<1>* loops, const T* x, T* y) {
  const StridedLoop<1>& loop = loops[blockIdx.y];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < loop.count; i += step) {
    int64_t at[1];
    loop.offsets(i, at);
    y[loop.out + i] = x[at[0]];
  }
}

// Rows of `length` elements, from and to every so many.
struct Runs {
  int64_t rows, length;
  int64_t from, from_step;
  int64_t to, to_step;
};

template <class T>
__global__ void runs_kernel(const Runs* table, const T* x, T* y) {
  const Runs& runs = table[blockIdx.y];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < runs.rows * runs.length;
       i += step) {
    int64_t row = i / runs.length, at = i % runs.length;
    y[runs.to + row * runs.to_step + at] = x[runs.from + row * runs.from_step + at];
  }
}

// Calls f.operator()<T>() for the unsigned T of that many bytes.
template <class F>
void with_size(int64_t bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f.template operator()<uint8_t>();
    case 2:
      return f.template operator()<uint16_t>();
    case 4:
      return f.template operator()<uint32_t>();
    default:
      return f.template operator()<uint64_t>();
  }
}

// The order is the CPU's op's, which knows its attributes and parameters.
class StridedOp final : public CudaOp {
 public:
  explicit StridedOp(const CudaNode& node) : op_(static_cast<const StridedCopyOp&>(node.op)) {}

  bool reads(size_t input) const override { return input == 0; }
  bool on_host(size_t input) const override { return input > 0; }

  void run(CudaRun& run) const override {
    const Segments& x = run.input(0);
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    auto loops = run.table<StridedLoop<1>>(run.requests());
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      ReadOrder order = order_of(run, r);
      StridedLoop<1>& loop = loops.rows[r];
      loop.set(order.dims, {order.strides});
      loop.in[0] = order.offset + (x.shared ? 0 : x.offsets[r]);
      loop.out = y.offsets[r];
      longest = std::max(longest, loop.count);
    }
    run.send(loops);
    with_size(size_of(y.dtype), [&]<class T>() {
      launch_rows(run.stream(), loop_shape(longest), strided_kernel<T>, loops, run.in<T>(0),
                  run.out<T>(0));
    });
  }

 private:
  static constexpr size_t kMost = 8;  // inputs of any of these ops

  ReadOrder order_of(const CudaRun& run, size_t r) const {
    ConstTensorView inputs[kMost];
    size_t count = 0;
    for (; count < kMost && count < run.inputs(); ++count) {
      if (!run.has_input(count)) continue;
      inputs[count] = count > 0
                          ? run.host_input(count, r)
                          : ConstTensorView{run.input(0).dtype, run.input(0).shape(r), nullptr};
    }
    return op_.order({inputs, count}, run.output(0).shape(r));
  }

  const StridedCopyOp& op_;
};

// What Concat and Split share: one launch per part.
class PartsOp : public CudaOp {
 public:
  explicit PartsOp(int64_t axis) : axis_(axis) {}

 protected:
  // Copies between a whole and the part of it that begins `at[r]` elements into each row of Request
  // r; moves `at` behind it.
  void copy(CudaRun& run, const Segments& whole, const Segments& part, bool to_whole,
            std::span<int64_t> at) const {
    auto table = run.table<Runs>(run.requests());
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      const Shape& all = whole.shape(r);
      const Shape& some = part.shape(r);
      int axis = normalize_axis(axis_, all.rank());
      int64_t rows = all.elements(0, axis);
      int64_t step = all.elements(axis, all.rank());
      int64_t length = some.elements(axis, some.rank());
      int64_t in_whole = (whole.shared ? 0 : whole.offsets[r]) + at[r];
      int64_t in_part = part.shared ? 0 : part.offsets[r];
      table.rows[r] = to_whole ? Runs{rows, length, in_part, length, in_whole, step}
                               : Runs{rows, length, in_whole, step, in_part, length};
      at[r] += length;
      longest = std::max(longest, rows * length);
    }
    if (longest == 0) return;
    run.send(table);
    const Segments& from = to_whole ? part : whole;
    const Segments& to = to_whole ? whole : part;
    with_size(size_of(whole.dtype), [&]<class T>() {
      launch_rows(run.stream(), loop_shape(longest), runs_kernel<T>, table,
                  reinterpret_cast<const T*>(from.data), reinterpret_cast<T*>(to.data));
    });
    run.release_scratch();
  }

 private:
  int64_t axis_;
};

class ConcatOp final : public PartsOp {
 public:
  using PartsOp::PartsOp;
  void run(CudaRun& run) const override {
    std::span<int64_t> at = run.host_scratch<int64_t>(run.requests());
    for (size_t i = 0; i < run.inputs(); ++i) copy(run, run.output(0), run.input(i), true, at);
  }
};

class SplitOp final : public PartsOp {
 public:
  using PartsOp::PartsOp;
  bool reads(size_t input) const override { return input == 0; }
  bool on_host(size_t input) const override { return input == 1; }
  void run(CudaRun& run) const override {
    std::span<int64_t> at = run.host_scratch<int64_t>(run.requests());
    for (size_t o = 0; o < run.outputs(); ++o) {
      if (run.has_output(o)) copy(run, run.input(0), run.output(o), false, at);
    }
  }
};

void refuse_strings(const NodeSpec& spec) {
  if (spec.output_dtypes[0] == DType::kString) spec.unsupported("device cuda: strings");
}

std::unique_ptr<CudaOp> make_strided(const CudaNode& node) {
  refuse_strings(node.spec);
  return std::make_unique<StridedOp>(node);
}

std::unique_ptr<CudaOp> make_concat(const CudaNode& node) {
  refuse_strings(node.spec);
  return std::make_unique<ConcatOp>(node.spec.int_or("axis", 1));
}

std::unique_ptr<CudaOp> make_split(const CudaNode& node) {
  refuse_strings(node.spec);
  for (DType dtype : node.spec.output_dtypes) {
    // An output that nobody wants has no shape here, by which the next would be found.
    if (dtype == DType::kNone) node.spec.unsupported("device cuda: an output that is not used");
  }
  return std::make_unique<SplitOp>(node.spec.int_or("axis", 0));
}

}  // namespace

void register_shape_cuda(CudaRegistry& registry) {
  for (const char* op : {"Transpose", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Slice"}) {
    registry.add(op, make_strided);
  }
  registry.add("Concat", make_concat);
  registry.add("Split", make_split);
}

}  // namespace headrace::cuda
