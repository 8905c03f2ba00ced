#include "ops/linear/gemm.h"

#include <algorithm>
#include <new>

#include "ops/op.h"

namespace headrace {
namespace {

constexpr std::align_val_t kAlignment{64};

// Packed rows of A share a core's L2 cache (0.5 to 2 MiB) with the panels that stream by.
constexpr int64_t kBlockBytes = 256 * 1024;

// Multiply-adds worth a task of their own; some 10 us.
constexpr int64_t kTaskWork = 1 << 19;

// Tasks per thread: enough that a thread which loses its core for a while does not hold up the op.
constexpr int64_t kTasksPerThread = 6;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void AlignedDelete::operator()(float* p) const {
  ::operator delete[](p, kAlignment);
}

AlignedFloats make_aligned_floats(int64_t count) {
  auto bytes = static_cast<size_t>(count) * sizeof(float);
  return AlignedFloats(static_cast<float*>(::operator new[](bytes, kAlignment)));
}

PackedPanels::PackedPanels(const GemmKernels& kernels, const float* b, int64_t stride,
                           bool transposed, int64_t k, int64_t cols, float scale)
    : k_(k),
      cols_(cols),
      panels_(ceil_div(cols, kernels.panel_cols)),
      panel_size_(k * kernels.panel_cols),
      data_(make_aligned_floats(panels_ * panel_size_)) {
  kernels.pack_panels(b, stride, transposed, k, cols, scale, data_.get());
}

int64_t gemm_block_rows(const GemmKernels& kernels, int64_t k) {
  int64_t tiles = kBlockBytes / (std::max<int64_t>(k, 1) * 4 * kernels.tile_rows);
  // Where K is long, rows come from the L3 cache instead: reading B once more would cost more.
  return std::clamp<int64_t>(tiles, 8, 64) * kernels.tile_rows;
}

void gemm(const OpRun& run, const GemmKernels& kernels, const PackedPanels& b,
          const GemmTask& task) {
  const int64_t rows = task.rows;
  if (rows == 0 || b.cols() == 0) return;
  // Row blocks x column ranges. Every task packs its rows itself: that costs a percent and saves
  // the threads from waiting for each other.
  int64_t work = rows * b.cols() * std::max<int64_t>(b.k(), 1);
  int64_t wanted = run.threads() == 1
                       ? 1
                       : std::clamp<int64_t>(work / kTaskWork, 1, kTasksPerThread * run.threads());
  int64_t row_blocks =
      std::max(ceil_div(rows, gemm_block_rows(kernels, b.k())), ceil_div(wanted, b.panels()));
  row_blocks = std::min(row_blocks, ceil_div(rows, kernels.tile_rows));
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, row_blocks), 1, b.panels());

  int64_t packed_size = packed_rows_size(ceil_div(rows, row_blocks), b.k());
  float* packed = run.scratch_of<float>(packed_size * run.threads());
  run.parallel(row_blocks * ranges, [&](int64_t index, int thread) {
    int64_t row_block = index / ranges;
    int64_t range = index % ranges;
    int64_t row = rows * row_block / row_blocks;
    int64_t row_end = rows * (row_block + 1) / row_blocks;
    int64_t panel = b.panels() * range / ranges;
    int64_t panel_end = b.panels() * (range + 1) / ranges;
    float* a = packed + thread * packed_size;
    kernels.pack_rows(task.a + row * task.a_stride, task.a_stride, row_end - row, b.k(), a);
    int64_t col = panel * kernels.panel_cols;
    Epilogue epilogue = task.epilogue;
    if (epilogue.bias) epilogue.bias += epilogue.bias_per_row ? row : col;
    if (epilogue.residual) epilogue.residual += row * epilogue.residual_stride + col;
    kernels.multiply({.a = a,
                      .b = b.panel(panel),
                      .rows = row_end - row,
                      .k = b.k(),
                      .cols = std::min(b.cols(), panel_end * kernels.panel_cols) - col,
                      .c = task.c + row * task.c_stride + col,
                      .c_stride = task.c_stride,
                      .epilogue = epilogue});
  });
}

Activation activation_of(const NodeSpec& spec) {
  std::string name = spec.string_or("activation", "none");
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu_erf") return Activation::kGeluErf;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "tanh") return Activation::kTanh;
  if (name == "silu") return Activation::kSilu;
  spec.unsupported(str("got activation '", name,
                       "', expected none, relu, gelu_erf, gelu_tanh, sigmoid, tanh or silu"));
}

}  // namespace headrace
