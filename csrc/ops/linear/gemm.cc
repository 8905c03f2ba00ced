#include "ops/linear/gemm.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "ops/op.h"

namespace headrace {

HEADRACE_DECLARE_KERNELS(GemmKernels, gemm_bf16_kernels)
HEADRACE_DECLARE_KERNELS(GemmKernels, gemm_int8_kernels)
#if defined(HEADRACE_KERNELS_X86)
namespace avx512_vnni {
extern const GemmKernels gemm_int8_kernels;
}
namespace avx512_bf16 {
extern const GemmKernels gemm_bf16_kernels;
}
#elif defined(HEADRACE_KERNELS_NEON)
namespace neon_dot {
extern const GemmKernels gemm_int8_kernels;
}
namespace neon_bf16 {
extern const GemmKernels gemm_bf16_kernels;
extern const GemmKernels gemm_int8_kernels;
}  // namespace neon_bf16
#endif

namespace {

constexpr std::align_val_t kAlignment{64};

// Packed rows of A share a core's L2 cache (0.5 to 2 MiB) with the panels that stream by.
constexpr int64_t kBlockBytes = 256 * 1024;

// Multiply-adds worth a task of their own; some 10 us.
constexpr int64_t kTaskWork = 1 << 19;

// Fewer rows than these take as long as these: they wait for B to come from memory.
constexpr int64_t kWaitingRows = 3;

// Tasks per thread: enough that a thread which loses its core for a while does not hold up the op.
constexpr int64_t kTasksPerThread = 6;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

void AlignedDelete::operator()(Word* p) const {
  ::operator delete[](p, kAlignment);
}

AlignedWords make_aligned_words(int64_t count) {
  auto bytes = static_cast<size_t>(count) * sizeof(Word);
  return AlignedWords(static_cast<Word*>(::operator new[](bytes, kAlignment)));
}

PackedPanels::PackedPanels(const NodeSpec& node, const GemmKernels& kernels, Matrix b, int64_t k,
                           int64_t cols, float scale)
    : k_(k),
      cols_(cols),
      panels_(ceil_div(cols, kernels.panel_cols)),
      panel_size_(kernels.panel_words(k)) {
  packed_ = node.pack(
      panels_ * panel_size_ * static_cast<int64_t>(sizeof(Word)),
      [&](std::byte* to) { kernels.pack_panels(b, k, cols, scale, reinterpret_cast<Word*>(to)); });
}

const GemmKernels& gemm_kernels_for(Isa isa, Precision precision) {
#if defined(HEADRACE_KERNELS_X86)
  if (precision == Precision::kBf16 && isa == Isa::kAvx512Bf16)
    return avx512_bf16::gemm_bf16_kernels;
  if (precision == Precision::kInt8 && isa >= Isa::kAvx512Vnni)
    return avx512_vnni::gemm_int8_kernels;
#elif defined(HEADRACE_KERNELS_NEON)
  if (isa == Isa::kNeonBf16 && precision == Precision::kBf16) return neon_bf16::gemm_bf16_kernels;
  if (isa == Isa::kNeonBf16 && precision == Precision::kInt8) return neon_bf16::gemm_int8_kernels;
  if (isa == Isa::kNeonDot && precision == Precision::kInt8) return neon_dot::gemm_int8_kernels;
#endif
  switch (precision) {
    case Precision::kBf16:
      return HEADRACE_KERNELS(isa, gemm_bf16_kernels);
    case Precision::kInt8:
      return HEADRACE_KERNELS(isa, gemm_int8_kernels);
    case Precision::kF32:
      break;
  }
  return HEADRACE_KERNELS(isa, gemm_kernels);
}

int64_t gemm_block_rows(const GemmKernels& kernels, int64_t k) {
  int64_t row_bytes = std::max<int64_t>(kernels.words(k), 1) * static_cast<int64_t>(sizeof(Word));
  int64_t tiles = kBlockBytes / (row_bytes * kernels.tile_rows);
  // Where K is long, rows come from the L3 cache instead: reading B once more would cost more.
  return std::clamp<int64_t>(tiles, 8, 64) * kernels.tile_rows;
}

namespace {

void* at(void* base, bool bf16, int64_t element) {
  return static_cast<std::byte*>(base) + element * (bf16 ? 2 : 4);
}
const void* at(const void* base, bool bf16, int64_t element) {
  return static_cast<const std::byte*>(base) + element * (bf16 ? 2 : 4);
}

// Tasks for so much work: the same number for every thread, or one where that would be too little.
int64_t tasks_worth(int64_t work, int64_t threads) {
  int64_t wanted = work / kTaskWork;
  if (threads == 1 || wanted < 2) return 1;
  return std::min(ceil_div(wanted, threads), kTasksPerThread) * threads;
}

void pack_rows(const GemmKernels& kernels, const GemmTask& task, int64_t row, int64_t rows,
               int64_t k, Word* packed) {
  int64_t first = row * task.a_stride;
  if (task.a_bf16) {
    const auto* a = static_cast<const uint16_t*>(task.a) + first;
    kernels.pack_bf16_rows(a, task.a_stride, rows, k, packed);
  } else {
    kernels.pack_rows({static_cast<const float*>(task.a) + first, task.a_stride}, rows, k, packed);
  }
}

}  // namespace

void gemm(const OpRun& run, const GemmKernels& kernels, const PackedPanels& b,
          const GemmTask& task) {
  const int64_t rows = task.rows;
  if (rows == 0 || b.cols() == 0) return;
  // Row blocks x column ranges. Every task packs its rows itself: that costs a percent and saves
  // the threads from waiting for each other.
  int64_t work =
      std::max(rows, kWaitingRows) * b.cols() * std::max<int64_t>(b.k(), 1) / kernels.k_per_word;
  int64_t wanted = tasks_worth(work, run.threads());
  int64_t row_blocks =
      std::max(ceil_div(rows, gemm_block_rows(kernels, b.k())), ceil_div(wanted, b.panels()));
  row_blocks = std::min(row_blocks, ceil_div(rows, kernels.tile_rows));
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, row_blocks), 1, b.panels());

  int64_t packed_size = kernels.packed_rows_words(ceil_div(rows, row_blocks), b.k());
  Word* packed = run.scratch_of<Word>(packed_size * run.threads());
  run.parallel(row_blocks * ranges, [&](int64_t index, int thread) {
    int64_t row_block = index / ranges;
    int64_t range = index % ranges;
    int64_t row = rows * row_block / row_blocks;
    int64_t row_end = rows * (row_block + 1) / row_blocks;
    int64_t panel = b.panels() * range / ranges;
    int64_t panel_end = b.panels() * (range + 1) / ranges;
    Word* a = packed + thread * packed_size;
    pack_rows(kernels, task, row, row_end - row, b.k(), a);
    int64_t col = panel * kernels.panel_cols;
    // Threads take tasks in turn, so that this one's next is likely to be that many further on.
    int64_t after = index + run.threads();
    bool last = after >= row_blocks * ranges;
    Epilogue epilogue = task.epilogue;
    if (epilogue.bias) epilogue.bias += col;
    if (epilogue.residual) {
      int64_t first = row * epilogue.residual_stride + col;
      epilogue.residual = at(epilogue.residual, epilogue.residual_bf16, first);
    }
    kernels.multiply({.a = a,
                      .b = b.panel(panel),
                      .next = last ? nullptr : b.panel(b.panels() * (after % ranges) / ranges),
                      .rows = row_end - row,
                      .k = kernels.words(b.k()),
                      .cols = std::min(b.cols(), panel_end * kernels.panel_cols) - col,
                      .c = at(task.c, task.c_bf16, row * task.c_stride + col),
                      .c_bf16 = task.c_bf16,
                      .c_stride = task.c_stride,
                      .epilogue = epilogue});
  });
}

namespace {

// How one Request's products are spread: `ranges` of columns for each of `matrices` products.
struct Spread {
  int64_t first_task;
  int64_t matrices;
  int64_t ranges;
};

// Packs the operands of one range of one product into `packed` and multiplies them.
void multiply_range(const GemmKernels& kernels, const DynamicProducts& p, int64_t matrix,
                    int64_t panel, int64_t panel_end, float scale, bool add, Word* packed) {
  Matrix a = p.a;
  Matrix b = p.b;
  int64_t rest = matrix;
  for (int axis = p.batch.rank() - 1; axis >= 0; --axis) {
    a.data += rest % p.batch[axis] * p.a_steps[axis];
    b.data += rest % p.batch[axis] * p.b_steps[axis];
    rest /= p.batch[axis];
  }
  int64_t col = panel * kernels.panel_cols;
  int64_t cols = std::min(p.cols, panel_end * kernels.panel_cols) - col;
  Word* b_packed = packed;
  Word* a_packed = packed + (panel_end - panel) * kernels.panel_words(p.k);
  kernels.pack_panels(b.from_col(col), p.k, cols, scale, b_packed);
  int64_t step = gemm_block_rows(kernels, p.k);
  for (int64_t row = 0; row < p.rows; row += step) {
    int64_t rows = std::min(step, p.rows - row);
    kernels.pack_rows(a.from_row(row), rows, p.k, a_packed);
    float* c = p.c + (matrix * p.rows + row) * p.cols + col;
    Epilogue epilogue;
    if (add) {
      epilogue.residual = c;
      epilogue.residual_stride = p.cols;
    }
    kernels.multiply({.a = a_packed,
                      .b = b_packed,
                      .rows = rows,
                      .k = kernels.words(p.k),
                      .cols = cols,
                      .c = c,
                      .c_stride = p.cols,
                      .epilogue = epilogue});
  }
}

}  // namespace

void gemm_dynamic(const OpRun& run, const GemmKernels& kernels,
                  FunctionRef<DynamicProducts(size_t request)> products, float scale, bool add) {
  auto* spread = run.scratch_of<Spread>(static_cast<int64_t>(run.requests()));
  int64_t matrices = 0;
  for (size_t r = 0; r < run.requests(); ++r) matrices += products(r).batch.elements();
  // Only where the products are too few to go round are they split themselves.
  int64_t wanted = ceil_div(kTasksPerThread * run.threads(), std::max<int64_t>(matrices, 1));
  if (run.threads() == 1) wanted = 1;
  int64_t tasks = 0;
  int64_t packed_size = 0;
  for (size_t r = 0; r < run.requests(); ++r) {
    DynamicProducts p = products(r);
    int64_t panels = ceil_div(p.cols, kernels.panel_cols);
    int64_t count = p.rows == 0 || panels == 0 ? 0 : p.batch.elements();
    int64_t work = p.rows * p.k * p.cols;
    int64_t ranges = std::max<int64_t>(1, std::min({wanted, work / kTaskWork, panels}));
    spread[r] = {tasks, count, ranges};
    tasks += count * ranges;
    int64_t rows = std::min(p.rows, gemm_block_rows(kernels, p.k));
    packed_size = std::max(packed_size, ceil_div(panels, ranges) * kernels.panel_words(p.k) +
                                            kernels.packed_rows_words(rows, p.k));
  }
  packed_size = ceil_div(packed_size, 16) * 16;
  Word* packed = run.scratch_of<Word>(packed_size * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const Spread* next =
        std::upper_bound(spread, spread + run.requests(), task,
                         [](int64_t value, const Spread& s) { return value < s.first_task; });
    const Spread& s = next[-1];
    DynamicProducts p = products(static_cast<size_t>(&s - spread));
    int64_t matrix = (task - s.first_task) / s.ranges;
    int64_t range = (task - s.first_task) % s.ranges;
    int64_t panels = ceil_div(p.cols, kernels.panel_cols);
    multiply_range(kernels, p, matrix, panels * range / s.ranges, panels * (range + 1) / s.ranges,
                   scale, add, packed + thread * packed_size);
  });
}

Precision precision_of(const NodeSpec& spec) {
  std::string name = spec.string_or("precision", "fp32");
  if (name == "fp32") return Precision::kF32;
  if (name == "bf16") return Precision::kBf16;
  if (name == "int8") return Precision::kInt8;
  spec.invalid(str("attribute 'precision': got '", name, "', expected fp32, bf16 or int8"));
}

Epilogue epilogue_of(const NodeSpec& spec) {
  Epilogue e;
  std::string name = spec.string_or("activation", "none");
  if (name == "none") return e;
  constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"relu", Activation::kRelu},          {"gelu_erf", Activation::kGeluErf},
      {"gelu_tanh", Activation::kGeluTanh}, {"sigmoid", Activation::kSigmoid},
      {"tanh", Activation::kTanh},          {"silu", Activation::kSilu},
      {"clip", Activation::kClip}};
  const auto* found =
      std::ranges::find(kNames, name, &std::pair<std::string_view, Activation>::first);
  if (found == std::end(kNames)) {
    spec.unsupported(
        str("got activation '", name,
            "', expected none, relu, gelu_erf, gelu_tanh, sigmoid, tanh, silu or clip"));
  }
  e.activation = found->second;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  e.clip_min = spec.float_or("clip_min", -kInfinity);
  e.clip_max = spec.float_or("clip_max", kInfinity);
  return e;
}

}  // namespace headrace
