// Convolutions as matrix products: the windows of a block of pixels are packed as rows, tap by tap
// and channel by channel, and multiplied by the weights, one product per group. A kernel of one tap
// is the product alone.
#include <algorithm>
#include <limits>
#include <utility>

#include "ops/conv/conv.h"
#include "ops/conv/window_rows.h"

namespace headrace {
namespace {

// Multiply-adds worth a task of their own, and tasks per thread; see linear/gemm.cc.
constexpr int64_t kTaskWork = 1 << 19;
constexpr int64_t kTasksPerThread = 6;
// Weights up to this many bytes stay in a core's L2 cache. Then few rows at a time are taken past
// all of them, so that a row of Y is written, and its residual read, in one go.
constexpr int64_t kResidentBytes = 384 * 1024;
constexpr int64_t kResidentTiles = 2;
// Elements rounded to bfloat16 that are worth a task; some 10 us.
constexpr int64_t kRoundedAtOnce = 1 << 16;

// True if the windows are the pixels of X themselves.
bool is_pointwise(const Windows& w) {
  for (int axis = 0; axis < kSpatial; ++axis) {
    if (w.kernel[axis] != 1 || w.stride[axis] != 1 || w.out[axis] != w.in[axis]) return false;
  }
  return true;
}

class DenseWay : public ConvWay {
 public:
  DenseWay(Isa isa, Precision precision)
      : precision_(precision),
        gemm_(gemm_kernels_for(isa, precision)),
        kernels_(HEADRACE_KERNELS(isa, conv_kernels)),
        windows_(HEADRACE_KERNELS(isa, window_rows_kernels)) {}

  int64_t packed_words(const ConvWeight& w) const override { return w.groups * group_words(w); }
  // One group's weights on their way from channel by channel to tap by tap.
  int64_t packing_room(const ConvWeight& w) const override {
    return w.taps == 1 ? 0 : w.group_out * w.k();
  }
  void pack(const ConvWeight& w, Word* packed, float* room) const override;
  void run(const OpRun& run, std::span<ConvProblem> problems) const override;

 private:
  int64_t panels(const ConvWeight& w) const { return ceil_div(w.group_out, gemm_.panel_cols); }
  int64_t group_words(const ConvWeight& w) const { return panels(w) * gemm_.panel_words(w.k()); }
  // Rows of Y times panels of one group's weights.
  struct Part {
    int64_t group;
    int64_t panel, panel_end;
    int64_t row = 0;
    int64_t rows = 0;
  };
  int64_t span_of(const ConvProblem& p, int64_t threads, int64_t row_blocks,
                  int64_t col_ranges) const;
  void split(const OpRun& run, ConvProblem& p) const;
  int64_t step(const ConvProblem& p) const;
  bool packs_directly(const ConvProblem& p) const;
  void round_overlapping(const OpRun& run, std::span<ConvProblem> problems) const;
  int64_t window_words(const ConvProblem& p) const;
  void pack_rows(const ConvProblem& p, const Part& part, Word* packed) const;
  void multiply(const ConvProblem& p, const Part& part, Word* packed) const;

  Precision precision_;
  void run_task(const ConvProblem& p, int64_t task, Word* packed) const;

  const GemmKernels& gemm_;
  const ConvKernels& kernels_;
  const WindowRowsKernels& windows_;
};

void DenseWay::pack(const ConvWeight& w, Word* packed, float* room) const {
  for (int64_t g = 0; g < w.groups; ++g) {
    const float* weights = w.data + g * w.group_out * w.k();
    if (w.taps > 1) {
      for (int64_t out = 0; out < w.group_out; ++out) {
        kernels_.transpose(weights + out * w.k(), w.group_in, w.taps, room + out * w.k());
      }
      weights = room;
    }
    gemm_.pack_panels({weights, w.k(), true}, w.k(), w.group_out, 1.0f,
                      packed + g * group_words(w));
  }
}

// What the slowest thread has to do for one group, in eighths of a tile times a panel, if the rows
// are split into `row_blocks` and the columns into `col_ranges`. Each task packs its rows and reads
// its weights, for which the tiles of a step leave it time. Split by columns, it also reads rows
// and residuals of which another core wrote a part.
int64_t DenseWay::span_of(const ConvProblem& p, int64_t threads, int64_t row_blocks,
                          int64_t col_ranges) const {
  int64_t tiles = ceil_div(ceil_div(p.rows(), gemm_.tile_rows), row_blocks);
  int64_t task_panels = ceil_div(panels(p.weight), col_ranges);
  int64_t weights = 2;
  if (group_words(p.weight) * int64_t{sizeof(Word)} > kResidentBytes) {
    int64_t steps = ceil_div(tiles * gemm_.tile_rows, gemm_block_rows(gemm_, p.weight.k()));
    weights = steps * std::max<int64_t>(2, 16 - 2 * (tiles / steps));
  }
  int64_t task = 8 * tiles * task_panels + tiles + weights * task_panels + 2;
  if (col_ranges > 1) task += tiles * task_panels / 4;
  return ceil_div(row_blocks * col_ranges * p.weight.groups, threads) * task;
}

// Of the splits that give every thread about the least to do, the one of most tasks, and of those
// the best.
void DenseWay::split(const OpRun& run, ConvProblem& p) const {
  const ConvWeight& w = p.weight;
  int64_t threads = run.threads();
  p.row_blocks = p.col_ranges = 1;
  int64_t work = p.rows() * p.channels_out() * std::max<int64_t>(w.k(), 1);
  int64_t wanted = std::clamp<int64_t>(work / kTaskWork, 1, kTasksPerThread * threads);
  wanted = ceil_div(wanted, w.groups);
  if (threads == 1 || wanted == 1) return;
  int64_t tiles = ceil_div(p.rows(), gemm_.tile_rows);
  auto each = [&](auto try_split) {
    for (int64_t blocks = 1; blocks <= std::min(tiles, wanted); ++blocks) {
      for (int64_t tasks : {threads, wanted}) {
        int64_t ranges = std::clamp<int64_t>(tasks / blocks, 1, panels(w));
        // Even ranges: 8 panels go round as 4 times 2, not as 6 times 1 or 2.
        ranges = ceil_div(panels(w), ceil_div(panels(w), ranges));
        try_split(blocks, ranges, span_of(p, threads, blocks, ranges));
      }
    }
  };
  int64_t least = span_of(p, threads, 1, 1);
  each([&](int64_t, int64_t, int64_t span) { least = std::min(least, span); });
  std::pair<int64_t, int64_t> best{1, std::numeric_limits<int64_t>::min()};  // tasks, -span
  each([&](int64_t blocks, int64_t ranges, int64_t span) {
    if (span > least + least / 32 || std::pair{blocks * ranges, -span} <= best) return;
    best = {blocks * ranges, -span};
    p.row_blocks = blocks;
    p.col_ranges = ranges;
  });
}

// Rows that are packed and multiplied at a time.
int64_t DenseWay::step(const ConvProblem& p) const {
  int64_t panel_range = ceil_div(panels(p.weight), p.col_ranges);
  int64_t bytes = panel_range * gemm_.panel_words(p.weight.k()) * int64_t{sizeof(Word)};
  if (bytes <= kResidentBytes) return kResidentTiles * gemm_.tile_rows;
  return gemm_block_rows(gemm_, p.weight.k());
}

void DenseWay::run(const OpRun& run, std::span<ConvProblem> problems) const {
  round_overlapping(run, problems);
  int64_t size = 0;
  int64_t tasks = number_tasks(problems, [&](ConvProblem& p) -> int64_t {
    if (p.rows() == 0 || p.channels_out() == 0) return 0;
    split(run, p);
    int64_t rows = std::min(p.rows(), step(p));
    size = std::max(size, gemm_.packed_rows_words(rows, p.weight.k()) + window_words(p));
    return p.row_blocks * p.col_ranges * p.weight.groups;
  });
  Word* packed = run.scratch_of<Word>(size * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const ConvProblem& p = problem_of(problems, task);
    run_task(p, task - p.first_task, packed + thread * size);
  });
}

// A range of rows times a range of columns of one group.
void DenseWay::run_task(const ConvProblem& p, int64_t task, Word* packed) const {
  int64_t range = task % p.col_ranges;
  int64_t group = task / p.col_ranges % p.weight.groups;
  int64_t block = task / (p.col_ranges * p.weight.groups);
  Part part{.group = group,
            .panel = panels(p.weight) * range / p.col_ranges,
            .panel_end = panels(p.weight) * (range + 1) / p.col_ranges};
  // Whole tiles, so that only the last range has a smaller one.
  int64_t tiles = ceil_div(p.rows(), gemm_.tile_rows);
  int64_t begin = tiles * block / p.row_blocks * gemm_.tile_rows;
  int64_t end = std::min(tiles * (block + 1) / p.row_blocks * gemm_.tile_rows, p.rows());
  // Even steps: 10 tiles of rows go as 5 + 5, not as 8 + 2.
  int64_t steps = ceil_div(end - begin, step(p));
  for (int64_t i = 0; i < steps; ++i) {
    part.row = begin + (end - begin) * i / steps;
    part.rows = begin + (end - begin) * (i + 1) / steps - part.row;
    multiply(p, part, packed);
  }
}

// Where windows overlap, their pixels are rounded once instead of in each of them.
void DenseWay::round_overlapping(const OpRun& run, std::span<ConvProblem> problems) const {
  if (precision_ != Precision::kBf16 || gemm_.k_per_word != 2) return;
  auto elements = [&](const ConvProblem& p) -> int64_t {
    const Windows& w = p.windows;
    bool overlap = w.taps() > w.stride[0] * w.stride[1] * w.stride[2];
    return p.x_bf16 || !overlap ? 0 : p.images * w.in_size() * p.channels_in();
  };
  int64_t size = 0;
  for (const ConvProblem& p : problems) size += elements(p);
  if (size == 0) return;
  auto* rounded = run.scratch_of<uint16_t>(size);
  for (ConvProblem& p : problems) {
    int64_t count = elements(p);
    if (count == 0) continue;
    const auto* x = static_cast<const float*>(p.x);
    run.parallel_ranges(count, kRoundedAtOnce, [&](int64_t begin, int64_t end, int) {
      kernels_.round_to_bf16(x + begin, end - begin, rounded + begin);
    });
    p.x = rounded;
    p.x_bf16 = true;
    rounded += count;
  }
}

// True if a row's elements lie packed as they do in X.
bool DenseWay::packs_directly(const ConvProblem& p) const {
  if (precision_ == Precision::kF32) return true;
  return precision_ == Precision::kBf16 && p.x_bf16 && gemm_.k_per_word == 2;
}

// Room for windows that are first written as plain rows, then packed as the precision wants them.
int64_t DenseWay::window_words(const ConvProblem& p) const {
  if (packs_directly(p) || is_pointwise(p.windows)) return 0;
  return std::min(p.rows(), step(p)) * p.weight.k() + kWindowRowsBeyond / int64_t{sizeof(Word)};
}

void DenseWay::pack_rows(const ConvProblem& p, const Part& part, Word* packed) const {
  int64_t k = p.weight.k();
  int64_t channel = part.group * p.weight.group_in;
  auto pack = [&](const void* rows, int64_t stride) {
    if (p.x_bf16) {
      gemm_.pack_bf16_rows(static_cast<const uint16_t*>(rows), stride, part.rows, k, packed);
    } else {
      gemm_.pack_rows({static_cast<const float*>(rows), stride}, part.rows, k, packed);
    }
  };
  if (is_pointwise(p.windows)) return pack(p.x_at(part.row, channel), p.channels_in());
  int64_t size = p.x_bf16 ? 2 : 4;
  bool direct = packs_directly(p);
  WindowRows rows{
      .x = reinterpret_cast<const uint8_t*>(p.x_at(0, channel)),
      .end = reinterpret_cast<const uint8_t*>(p.x_at(p.images * p.windows.in_size(), 0)),
      .pixel = p.weight.group_in * size,
      .pixel_stride = p.channels_in() * size,
      .windows = &p.windows,
      .first = part.row,
      .count = part.rows,
      .padding = 0,
      // Pairs are whole.
      .tail = direct && p.x_bf16 ? k % 2 * size : 0};
  if (direct) {
    constexpr int64_t kWord = sizeof(Word);
    return windows_.pack(rows, {.first = reinterpret_cast<uint8_t*>(packed),
                                .row_stride = kGemmRowStride * kWord,
                                .block = kGemmBlockWords * kWord,
                                .block_stride = part.rows * kGemmRowStride * kWord});
  }
  Word* plain = packed + gemm_.packed_rows_words(part.rows, k);
  int64_t stride = k * size;
  windows_.pack(rows, {.first = reinterpret_cast<uint8_t*>(plain),
                       .row_stride = stride,
                       .block = stride,
                       .block_stride = stride});
  pack(plain, k);
}

void DenseWay::multiply(const ConvProblem& p, const Part& part, Word* packed) const {
  const ConvWeight& w = p.weight;
  pack_rows(p, part, packed);
  const Word* weights = p.packed + part.group * group_words(w);
  // Pixels that follow in memory are what is packed next.
  int64_t after = part.row + part.rows;
  int64_t ahead = 0;
  if (w.groups == 1 && is_pointwise(p.windows)) ahead = std::min(part.rows, p.rows() - after);
  int64_t col = part.panel * gemm_.panel_cols;
  int64_t channel = part.group * w.group_out + col;
  gemm_.multiply({.a = packed,
                  .b = weights + part.panel * gemm_.panel_words(w.k()),
                  .rows = part.rows,
                  .k = gemm_.words(w.k()),
                  .cols = std::min(w.group_out, part.panel_end * gemm_.panel_cols) - col,
                  .c = p.y_at(part.row, channel),
                  .c_bf16 = p.y_bf16,
                  .c_stride = p.channels_out(),
                  .epilogue = p.epilogue_at(part.row, channel),
                  .fetch = p.x_at(after, 0),
                  .fetch_bytes = ahead * p.channels_in() * (p.x_bf16 ? 2 : 4)});
}

}  // namespace

std::unique_ptr<ConvWay> make_dense_way(Isa isa, Precision precision) {
  return std::make_unique<DenseWay>(isa, precision);
}

}  // namespace headrace
