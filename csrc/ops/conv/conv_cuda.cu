// headrace.FusedConv, channels last: dense by implicit GEMM (rows are pixels of Y, k runs over the
// taps of the window and the channels under them), over single pixels also by cuBLASLt, depthwise
// by a thread per element.
#include "cuda/gemm_tile.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/conv/window.h"
#include "ops/linear/library_rows.h"

namespace headrace::cuda {
namespace {

// The convolution of consecutive Requests of one shape.
struct ConvTask {
  Windows windows;
  int64_t pixels;  // of Y, over all images
  int64_t groups, group_in, group_out;
  const void* x;
  bool x_bf16;
  void* y;
  bool y_bf16;
  TileEpilogue epilogue;
};

// Where the window of one of Y's pixels begins in X: image * in_size, and the first position along
// each axis, which may lie on the pads.
struct Window {
  int64_t image;
  int64_t at[kSpatial];
};

__device__ Window window_at(const Windows& w, int64_t pixel) {
  Window window;
  for (int axis = kSpatial - 1; axis >= 0; --axis) {
    window.at[axis] = pixel % w.out[axis] * w.stride[axis] - w.pad_begin[axis];
    pixel /= w.out[axis];
  }
  window.image = pixel * w.in[0] * w.in[1] * w.in[2];
  return window;
}

// The pixel of X under a tap, or -1 on the pads.
__device__ int64_t pixel_under(const Windows& w, const Window& window, int64_t tap) {
  int64_t place[kSpatial];
  for (int axis = kSpatial - 1; axis >= 0; --axis) {
    place[axis] = window.at[axis] + tap % w.kernel[axis] * w.dilation[axis];
    tap /= w.kernel[axis];
    if (place[axis] < 0 || place[axis] >= w.in[axis]) return -1;
  }
  return window.image + (place[0] * w.in[1] + place[1]) * w.in[2] + place[2];
}

// X's channels under the windows of one group, as a matrix of pixels x (taps * group_in).
struct Patches {
  const ConvTask& task;
  int64_t group;
  __device__ Window row(int64_t pixel) const { return window_at(task.windows, pixel); }
  __device__ float at(const Window& window, int64_t k) const {
    int64_t pixel = pixel_under(task.windows, window, k / task.group_in);
    if (pixel < 0) return 0.0f;
    int64_t channel = group * task.group_in + k % task.group_in;
    return load_element(task.x, task.x_bf16, pixel * task.groups * task.group_in + channel);
  }
};
// Weights of one group, [taps * group_in, group_out].
template <class T>
struct Filters {
  const T* weight;
  int64_t cols;
  __device__ float at(int64_t k, int64_t col) const { return to_float(weight[k * cols + col]); }
};
struct Pixels {
  const ConvTask& task;
  int64_t group;
  __device__ void put(int64_t pixel, int64_t col, float sum) const {
    int64_t channel = group * task.group_out + col;
    int64_t at = pixel * task.groups * task.group_out + channel;
    store_element(task.y, task.y_bf16, at, task.epilogue.finish(sum, channel, at));
  }
};

// blockIdx.z counts the groups of all tasks.
template <class T, bool kHalf>
__global__ void __launch_bounds__(kF32Threads) conv_kernel(const ConvTask* tasks, const T* weight) {
  int64_t groups = tasks[0].groups;
  const ConvTask& task = tasks[blockIdx.z / groups];
  if (int64_t{blockIdx.x} * kTile >= task.pixels) return;  // the grid is cut for the most pixels
  int64_t group = blockIdx.z % groups;
  int64_t k =
      task.windows.kernel[0] * task.windows.kernel[1] * task.windows.kernel[2] * task.group_in;
  Filters<T> filters{weight + group * k * task.group_out, task.group_out};
  Patches patches{task, group};
  Pixels pixels{task, group};
  if constexpr (kHalf) {
    multiply_half<T>(patches, filters, pixels, task.pixels, task.group_out, k);
  } else {
    multiply_f32(patches, filters, pixels, task.pixels, task.group_out, k);
  }
}

// `weight` is [taps, channels].
__global__ void depthwise_kernel(const ConvTask* tasks, const float* weight) {
  const ConvTask& task = tasks[blockIdx.y];
  const Windows& w = task.windows;
  int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < task.pixels * task.groups;
       i += step) {
    int64_t channel = i % task.groups;
    Window window = window_at(w, i / task.groups);
    float sum = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      int64_t pixel = pixel_under(w, window, tap);
      if (pixel < 0) continue;
      sum = fmaf(load_element(task.x, task.x_bf16, pixel * task.groups + channel),
                 weight[tap * task.groups + channel], sum);
    }
    store_element(task.y, task.y_bf16, i, task.epilogue.finish(sum, channel, i));
  }
}

class ConvOp final : public CudaOp {
 public:
  enum Input : size_t { kX, kWeight, kBias, kResidual };

  explicit ConvOp(const CudaNode& node)
      : bf16_(precision_of(node.spec) == Precision::kBf16),
        window_(window_of(node.spec)),
        groups_(node.spec.int_or("group", 1)),
        shape_(node.spec.constants[kWeight].shape),
        epilogue_(tile_epilogue_of(node.spec)),
        bias_(node.upload_input(kBias)) {
    epilogue_.residual_first = true;
    std::vector<float> packed = pack(node.spec.constants[kWeight].as<float>());
    if (bf16_ && !depthwise()) {
      std::vector<BFloat16> rounded = to_bf16(packed);
      weight_ = node.upload(std::span<const BFloat16>(rounded));
    } else {
      weight_ = node.upload(std::span<const float>(packed));
    }
    if (!pointwise()) return;
    library_ =
        LibraryRows::make(node, {shape_[1], shape_[0], bf16_, false}, weight_, bias_, epilogue_);
  }

  bool reads(size_t input) const override { return input != kWeight && input != kBias; }
  int64_t device_bytes() const override { return weight_.bytes() + bias_.bytes(); }

  void run(CudaRun& run) const override {
    if (run.output(0).elements() == 0) return;
    if (library_ != nullptr) return library_->run(run);
    // Only the first of them are used where neighbours have one shape.
    auto tasks = run.table<ConvTask>(run.requests());
    size_t count = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      bool follows = r > 0 && run.input(kX).shape(r) == run.input(kX).shape(r - 1);
      ConvTask task = task_of(run, r);
      if (follows) {
        tasks.rows[count - 1].pixels += task.pixels;
      } else {
        tasks.rows[count++] = task;
      }
    }
    tasks.rows = tasks.rows.first(count);
    run.send(tasks);
    int64_t pixels = 0;
    for (const ConvTask& task : tasks.rows) pixels = std::max(pixels, task.pixels);
    if (depthwise()) {
      launch_rows(run.stream(), loop_shape(pixels * groups_), depthwise_kernel, tasks,
                  weight_.as<float>());
      return;
    }
    dim3 grid = tile_grid(pixels, shape_[0] / groups_);
    in_stretches(static_cast<int64_t>(count), groups_, [&](int64_t first, int64_t length) {
      grid.z = static_cast<unsigned>(length * groups_);
      launch_tiles(run, grid, tasks.device + first);
    });
  }

 private:
  void launch_tiles(CudaRun& run, dim3 grid, const ConvTask* tasks) const {
    if (bf16_) {
      launch(run.stream(), {grid, kHalfThreads, sizeof(TileHalf<__nv_bfloat16>)},
             conv_kernel<__nv_bfloat16, true>, tasks, weight_.as<__nv_bfloat16>());
    } else {
      launch(run.stream(), {grid, kF32Threads, sizeof(TileF32)}, conv_kernel<float, false>, tasks,
             weight_.as<float>());
    }
  }

  bool depthwise() const { return shape_[1] == 1 && shape_[0] == groups_ && groups_ > 1; }

  // True if Y's pixels are X's, times the weights.
  bool pointwise() const {
    bool steps = std::ranges::all_of(window_.stride, [](int64_t step) { return step == 1; });
    auto none = [](int64_t pad) { return pad == 0; };
    return groups_ == 1 && shape_.elements(2, shape_.rank()) == 1 && steps &&
           std::ranges::all_of(window_.pad_begin, none) &&
           std::ranges::all_of(window_.pad_end, none);
  }

  // From [groups * group_out, group_in, taps...] to [groups][taps][group_in][group_out], which for
  // depthwise is [taps][groups].
  std::vector<float> pack(const float* from) const {
    int64_t in = shape_[1], out = shape_[0] / groups_, taps = shape_.elements(2, shape_.rank());
    std::vector<float> to(static_cast<size_t>(shape_.elements()));
    for (int64_t channel = 0; channel < shape_[0]; ++channel) {
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          int64_t row = (channel / out * taps + tap) * in + i;
          int64_t at = depthwise() ? tap * groups_ + channel : row * out + channel % out;
          to[static_cast<size_t>(at)] = from[(channel * in + i) * taps + tap];
        }
      }
    }
    return to;
  }

  ConvTask task_of(const CudaRun& run, size_t r) const {
    Shape x = channels_first(run.input(kX).shape(r), true);
    ConvTask task{};
    task.windows = windows_over(window_, x, shape_.dims().subspan(2));
    task.pixels = x[0] * task.windows.out_size();
    task.groups = groups_;
    task.group_in = shape_[1];
    task.group_out = shape_[0] / groups_;
    task.x = run.in<void>(kX, r);
    task.x_bf16 = run.input(kX).dtype == DType::kBF16;
    task.y = run.out<void>(0, r);
    task.y_bf16 = run.output(0).dtype == DType::kBF16;
    task.epilogue = epilogue_;
    task.epilogue.bias = bias_.as<float>();
    if (run.has_input(kResidual)) {
      task.epilogue.residual = run.in<void>(kResidual, r);
      task.epilogue.residual_bf16 = run.input(kResidual).dtype == DType::kBF16;
    }
    return task;
  }

  bool bf16_;
  WindowSpec window_;
  int64_t groups_;
  Shape shape_;  // of the weights
  TileEpilogue epilogue_;
  DeviceMemory weight_;
  DeviceMemory bias_;
  std::unique_ptr<LibraryRows> library_;  // if that computes it
};

std::unique_ptr<CudaOp> make_conv(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  if (precision_of(spec) == Precision::kInt8) {
    spec.unsupported("device cuda: precision int8, expected fp32 or bf16");
  }
  if (spec.int_or("winograd", 0) != 0) spec.unsupported("device cuda: Winograd's way");
  if (!spec.is_constant(ConvOp::kWeight) ||
      (spec.has_input(ConvOp::kBias) && !spec.is_constant(ConvOp::kBias))) {
    spec.unsupported("device cuda: weights that are not constant");
  }
  if (spec.is_constant(ConvOp::kX) || spec.is_constant(ConvOp::kResidual)) {
    spec.unsupported("device cuda: X or a residual that is constant");
  }
  return std::make_unique<ConvOp>(node);
}

}  // namespace

void register_conv_cuda(CudaRegistry& registry) {
  registry.add("headrace.FusedConv", make_conv);
}

}  // namespace headrace::cuda
