// Poolings: headrace.MaxPool and headrace.AveragePool, channels last, and ONNX's GlobalAveragePool
// and GlobalMaxPool, channels first.
#include "cuda/math.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/conv/window.h"

namespace headrace::cuda {
namespace {

struct PoolTask {
  Windows windows;
  int64_t count;  // elements of Y
  int64_t channels;
  const float* x;
  float* y;
};

// Taps of one axis that count for an average: those before `limit`, the pads included or not.
__device__ int64_t counted(const Windows& w, int axis, int64_t first, bool count_pads) {
  int64_t count = 0;
  for (int64_t tap = 0; tap < w.kernel[axis]; ++tap) {
    int64_t at = first + tap * w.dilation[axis];
    bool pads = count_pads && at < w.in[axis] + w.pad_end[axis];
    count += pads || (at >= 0 && at < w.in[axis]);
  }
  return count;
}

__global__ void pool_kernel(const PoolTask* tasks, bool averages, bool count_pads) {
  const PoolTask& task = tasks[blockIdx.y];
  const Windows& w = task.windows;
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < task.count; i += step) {
    int64_t channel = i % task.channels;
    int64_t pixel = i / task.channels;
    int64_t first[kSpatial];
    for (int axis = kSpatial - 1; axis >= 0; --axis) {
      first[axis] = pixel % w.out[axis] * w.stride[axis] - w.pad_begin[axis];
      pixel /= w.out[axis];
    }
    float sum = averages ? 0.0f : -__builtin_inff();
    for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
      int64_t d = first[0] + kd * w.dilation[0];
      if (d < 0 || d >= w.in[0]) continue;
      for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
        int64_t h = first[1] + kh * w.dilation[1];
        if (h < 0 || h >= w.in[1]) continue;
        for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
          int64_t col = first[2] + kw * w.dilation[2];
          if (col < 0 || col >= w.in[2]) continue;
          int64_t from = ((pixel * w.in[0] + d) * w.in[1] + h) * w.in[2] + col;
          float x = task.x[from * task.channels + channel];
          sum = averages ? sum + x : (x > sum || x != x ? x : sum);  // NaN stays
        }
      }
    }
    if (averages) {
      int64_t taps = 1;
      for (int axis = 0; axis < kSpatial; ++axis) taps *= counted(w, axis, first[axis], count_pads);
      sum /= static_cast<float>(taps);
    }
    task.y[i] = sum;
  }
}

// A warp per plane of `size` elements.
struct PlaneTask {
  const float* x;
  float* y;
  int64_t planes;
  int64_t size;
};
constexpr unsigned kPlanesPerBlock = 4;

__global__ void global_pool_kernel(const PlaneTask* tasks, bool averages) {
  const PlaneTask& task = tasks[blockIdx.y];
  int64_t plane = int64_t{blockIdx.x} * kPlanesPerBlock + threadIdx.x / kWarp;
  if (plane >= task.planes) return;  // a whole warp
  const float* x = task.x + plane * task.size;
  int64_t lane = threadIdx.x % kWarp;
  float result = averages ? 0.0f : -__builtin_inff();
  bool nan = false;
  for (int64_t i = lane; i < task.size; i += kWarp) {
    nan = nan || x[i] != x[i];
    result = averages ? result + x[i] : fmaxf(result, x[i]);
  }
  result = averages ? warp_sum(result) / static_cast<float>(task.size) : warp_max(result);
  if (!averages && __any_sync(kAllLanes, nan)) result = __builtin_nanf("");
  if (lane == 0) task.y[plane] = result;
}

class PoolOp final : public CudaOp {
 public:
  explicit PoolOp(const NodeSpec& spec)
      : averages_(spec.op == "headrace.AveragePool"),
        window_(window_of(spec)),
        count_pads_(spec.int_or("count_include_pad", 0) != 0) {}

  void run(CudaRun& run) const override {
    auto tasks = run.table<PoolTask>(run.requests());
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      Shape x = channels_first(run.input(0).shape(r), true);
      tasks.rows[r] = {windows_over(window_, x), run.output(0).shape(r).elements(), x[1],
                       run.in<float>(0, r), run.out<float>(0, r)};
      longest = std::max(longest, tasks.rows[r].count);
    }
    if (longest == 0) return;
    run.send(tasks);
    launch_rows(run.stream(), loop_shape(longest), pool_kernel, tasks, averages_, count_pads_);
  }

 private:
  bool averages_;
  WindowSpec window_;
  bool count_pads_;
};

class GlobalPoolOp final : public CudaOp {
 public:
  explicit GlobalPoolOp(bool averages) : averages_(averages) {}

  void run(CudaRun& run) const override {
    auto tasks = run.table<PlaneTask>(run.requests());
    int64_t most = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      const Shape& x = run.input(0).shape(r);
      tasks.rows[r] = {run.in<float>(0, r), run.out<float>(0, r), x[0] * x[1],
                       x.elements(2, x.rank())};
      most = std::max(most, tasks.rows[r].planes);
    }
    if (most == 0) return;
    run.send(tasks);
    launch_rows(run.stream(), {blocks_for(most, kPlanesPerBlock), kPlanesPerBlock * kWarp},
                global_pool_kernel, tasks, averages_);
  }

 private:
  bool averages_;
};

void check(const NodeSpec& spec) {
  require_dtype(spec, DType::kF32);
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
}

std::unique_ptr<CudaOp> make_pool(const CudaNode& node) {
  check(node.spec);
  return std::make_unique<PoolOp>(node.spec);
}
std::unique_ptr<CudaOp> make_global_pool(const CudaNode& node) {
  check(node.spec);
  return std::make_unique<GlobalPoolOp>(node.spec.op == "GlobalAveragePool");
}

}  // namespace

void register_pool_cuda(CudaRegistry& registry) {
  registry.add("headrace.MaxPool", make_pool);
  registry.add("headrace.AveragePool", make_pool);
  registry.add("GlobalAveragePool", make_global_pool);
  registry.add("GlobalMaxPool", make_global_pool);
}

}  // namespace headrace::cuda
