// Convolutions of one channel of X and one of Y per group: no matrix to speak of, so vectors run
// along the channels and each row of pixels is convolved where it lies.
#include <algorithm>
#include <limits>

#include "ops/conv/conv.h"

namespace headrace {
namespace {

constexpr int64_t kTasksPerThread = 6;
// Multiply-adds worth a task of their own, and channels worth splitting a row of pixels for.
constexpr int64_t kTaskWork = 1 << 16;
constexpr int64_t kRangeChannels = 64;

class DepthwiseWay : public ConvWay {
 public:
  explicit DepthwiseWay(Isa isa)
      : gemm_(HEADRACE_KERNELS(isa, gemm_kernels)), kernels_(HEADRACE_KERNELS(isa, conv_kernels)) {}

  int64_t packed_words(const ConvWeight& w) const override { return w.groups * w.taps; }
  int64_t packing_room(const ConvWeight&) const override { return 0; }
  void pack(const ConvWeight& w, Word* packed, float*) const override {
    kernels_.transpose(w.data, w.groups, w.taps, reinterpret_cast<float*>(packed));
  }
  void run(const OpRun& run, std::span<ConvProblem> problems) const override;

 private:
  // What a thread works in.
  struct Room {
    const float* zeros;
    const void** sources;
    float* products;
  };
  void run_task(const ConvProblem& p, int64_t task, const Room& room) const;

  const GemmKernels& gemm_;
  const ConvKernels& kernels_;
};

// Rows of pixels in an image.
int64_t image_rows(const ConvProblem& p) {
  return p.windows.out[0] * p.windows.out[1];
}

// True if the kernel itself can finish an element; the rest go through the product's epilogue.
bool finishes_itself(const Epilogue& e) {
  bool clips = e.activation == Activation::kRelu || e.activation == Activation::kClip;
  return e.residual == nullptr && (clips || e.activation == Activation::kNone);
}

void DepthwiseWay::run(const OpRun& run, std::span<ConvProblem> problems) const {
  int64_t channels = 0;
  int64_t taps = 0;
  int64_t row = 0;
  int64_t tasks = number_tasks(problems, [&](ConvProblem& p) -> int64_t {
    int64_t rows = p.images * image_rows(p);
    if (p.rows() == 0) return 0;
    channels = std::max(channels, p.weight.groups);
    taps = std::max(taps, p.weight.taps);
    row = std::max(row, p.windows.out[2] * p.channels_out());
    int64_t work = p.rows() * p.weight.taps * p.weight.groups;
    int64_t wanted = 1;
    if (run.threads() > 1) {
      wanted = std::clamp<int64_t>(work / kTaskWork, 1, kTasksPerThread * run.threads());
    }
    p.row_blocks = std::min(rows, wanted);
    p.col_ranges = std::clamp<int64_t>(ceil_div(wanted, p.row_blocks), 1,
                                       std::max<int64_t>(p.weight.groups / kRangeChannels, 1));
    return p.row_blocks * p.col_ranges;
  });
  float* zeros = run.scratch_of<float>(channels);
  std::fill_n(zeros, channels, 0.0f);
  const void** sources = run.scratch_of<const void*>(taps * kDepthwisePixels * run.threads());
  float* products = run.scratch_of<float>(row * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const ConvProblem& p = problem_of(problems, task);
    run_task(p, task - p.first_task,
             {zeros, sources + thread * taps * kDepthwisePixels, products + thread * row});
  });
}

void DepthwiseWay::run_task(const ConvProblem& p, int64_t task, const Room& room) const {
  const Windows& w = p.windows;
  int64_t channels = p.weight.groups;
  int64_t range = task % p.col_ranges;
  int64_t block = task / p.col_ranges;
  int64_t rows = p.images * image_rows(p);
  // No kernel goes from floats to bfloat16.
  bool whole = finishes_itself(p.epilogue) && (p.x_bf16 || !p.y_bf16);
  auto* kernel = whole && p.y_bf16 ? kernels_.depthwise_bf16 : kernels_.depthwise_from_bf16;
  if (!p.x_bf16) kernel = kernels_.depthwise;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  bool relu = p.epilogue.activation == Activation::kRelu;
  DepthwiseRow row{};
  row.weights = reinterpret_cast<const float*>(p.packed);
  row.zeros = room.zeros;
  row.channels = channels;
  row.y_stride = channels;
  row.begin = channels * range / p.col_ranges;
  row.end = channels * (range + 1) / p.col_ranges;
  row.windows = &w;
  row.sources = room.sources;
  if (whole) {
    row.bias = p.epilogue.bias;
    row.clip = p.epilogue.activation != Activation::kNone;
    row.low = relu ? 0.0f : p.epilogue.clip_min;
    row.high = relu ? kInfinity : p.epilogue.clip_max;
  }
  for (int64_t r = rows * block / p.row_blocks; r < rows * (block + 1) / p.row_blocks; ++r) {
    row.x = p.x_at(r / image_rows(p) * w.in_size(), 0);
    row.depth = r / w.out[1] % w.out[0];
    row.height = r % w.out[1];
    // Y may hold the residual.
    row.y = whole ? static_cast<void*>(p.y_at(r * w.out[2], 0)) : room.products;
    kernel(row);
    if (whole) continue;
    gemm_.finish({.rows = w.out[2],
                  .cols = row.end - row.begin,
                  .c = p.y_at(r * w.out[2], row.begin),
                  .c_bf16 = p.y_bf16,
                  .c_stride = channels,
                  .epilogue = p.epilogue_at(r * w.out[2], row.begin)},
                 room.products + row.begin, channels);
  }
}

}  // namespace

std::unique_ptr<ConvWay> make_depthwise_way(Isa isa) {
  return std::make_unique<DepthwiseWay>(isa);
}

}  // namespace headrace
