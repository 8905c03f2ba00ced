// Reductions of floats: a thread per result, which takes its elements in order, or, along the last
// axis, a warp per result, whose lanes take every 32nd and are joined in one order. Which of the
// two follows from the Request's shape alone.
#include "core/strided.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/node_inputs.h"

namespace headrace::cuda {
namespace {

enum class Kind { kSum, kMean, kMax, kMin, kL1, kL2, kSumSquare };

__device__ float first_of(Kind kind) {
  if (kind == Kind::kMax) return -__builtin_inff();
  return kind == Kind::kMin ? __builtin_inff() : 0.0f;
}
// One element taken, and what lanes have taken joined.
__device__ float join(Kind kind, float a, float b) {
  if (kind == Kind::kMax) return a > b || a != a ? a : b;
  if (kind == Kind::kMin) return a < b || a != a ? a : b;
  return a + b;
}
__device__ float take(Kind kind, float sum, float x) {
  switch (kind) {
    case Kind::kL1:
      return sum + fabsf(x);
    case Kind::kL2:
    case Kind::kSumSquare:
      return fmaf(x, x, sum);
    default:
      return join(kind, sum, x);
  }
}
__device__ float finish(Kind kind, float sum, int64_t count) {
  if (kind == Kind::kMean) return sum / static_cast<float>(count);
  return kind == Kind::kL2 ? sqrtf(sum) : sum;
}

// Results along `kept`, each from the elements along `gone`.
struct ReduceTask {
  StridedLoop<1> kept;
  StridedLoop<1> gone;
  bool by_warp;
};

constexpr int64_t kThreads = 128;

__global__ void reduce_kernel(const ReduceTask* tasks, Kind kind, const float* x, float* y) {
  const ReduceTask& task = tasks[blockIdx.y];
  int64_t lanes = task.by_warp ? kWarp : 1;
  int64_t lane = threadIdx.x % lanes;
  int64_t step = int64_t{gridDim.x} * kThreads / lanes;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes; i < task.kept.count;
       i += step) {
    int64_t base[1], at[1];
    task.kept.offsets(i, base);
    float sum = first_of(kind);
    for (int64_t j = lane; j < task.gone.count; j += lanes) {
      task.gone.offsets(j, at);
      sum = take(kind, sum, x[base[0] + at[0]]);
    }
    for (int64_t other = lanes / 2; other > 0; other /= 2) {
      // The lower lane first: join() is not symmetric where one is NaN.
      float theirs = __shfl_xor_sync(kAllLanes, sum, static_cast<int>(other));
      sum = (lane & other) == 0 ? join(kind, sum, theirs) : join(kind, theirs, sum);
    }
    if (lane == 0) y[task.kept.out + i] = finish(kind, sum, task.gone.count);
  }
}

class ReduceOp final : public CudaOp {
 public:
  ReduceOp(const NodeSpec& spec, Kind kind)
      : kind_(kind),
        axes_(spec, "axes", 1),
        empty_is_none_(spec.int_or("noop_with_empty_axes", 0) != 0) {}

  bool reads(size_t input) const override { return input == 0; }
  bool on_host(size_t input) const override { return input == 1; }

  void run(CudaRun& run) const override {
    if (run.output(0).elements() == 0) return;
    auto tasks = run.table<ReduceTask>(run.requests());
    int64_t most = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      set(tasks.rows[r], run, r);
      most = std::max(most, tasks.rows[r].kept.count * (tasks.rows[r].by_warp ? kWarp : 1));
    }
    run.send(tasks);
    launch_rows(run.stream(), {blocks_for(most, kThreads), kThreads}, reduce_kernel, tasks, kind_,
                run.in<float>(0), run.out<float>(0));
  }

 private:
  void set(ReduceTask& task, CudaRun& run, size_t r) const {
    const Segments& x = run.input(0);
    const Shape& shape = x.shape(r);
    ConstTensorView inputs[2];
    if (run.has_input(1)) inputs[1] = run.host_input(1, r);
    std::span<const int64_t> axes = axes_.get(inputs);
    uint32_t mask = axes.empty() && !empty_is_none_ ? (1u << shape.rank()) - 1 : 0;
    for (int64_t axis : axes) mask |= 1u << normalize_axis(axis, shape.rank());
    Strides dense = strides_of(shape);
    Shape kept, gone;
    Strides kept_steps, gone_steps;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      bool reduced = (mask >> axis & 1) != 0;
      (reduced ? gone_steps : kept_steps)[(reduced ? gone : kept).rank()] = dense[axis];
      (reduced ? gone : kept).push_back(shape[axis]);
    }
    task.kept.set(kept, {kept_steps});
    task.gone.set(gone, {gone_steps});
    task.kept.in[0] = x.offsets[r];
    task.kept.out = run.output(0).offsets[r];
    task.gone.in[0] = task.gone.out = 0;
    const StridedLoop<1>& inner = task.gone;
    task.by_warp = inner.rank > 0 && inner.strides[0][inner.rank - 1] == 1;
  }

  Kind kind_;
  IntList axes_;
  bool empty_is_none_;
};

template <Kind kKind>
std::unique_ptr<CudaOp> make_reduce(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  if (spec.input_dtypes[0] != DType::kF32) {
    spec.unsupported(
        str("device cuda: got dtype ", name_of(spec.input_dtypes[0]), ", expected float32"));
  }
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
  return std::make_unique<ReduceOp>(spec, kKind);
}

}  // namespace

void register_reduce_cuda(CudaRegistry& registry) {
  registry.add("ReduceSum", make_reduce<Kind::kSum>);
  registry.add("ReduceMean", make_reduce<Kind::kMean>);
  registry.add("ReduceMax", make_reduce<Kind::kMax>);
  registry.add("ReduceMin", make_reduce<Kind::kMin>);
  registry.add("ReduceL1", make_reduce<Kind::kL1>);
  registry.add("ReduceL2", make_reduce<Kind::kL2>);
  registry.add("ReduceSumSquare", make_reduce<Kind::kSumSquare>);
}

}  // namespace headrace::cuda
