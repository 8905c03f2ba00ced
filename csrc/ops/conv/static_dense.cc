// Quantised convolutions as matrix products: the windows of a block of pixels are packed as rows of
// bytes, and multiplied by the weights, one product per group.
#include <algorithm>

#include "ops/conv/static_conv.h"

namespace headrace {
namespace {

// As dense.cc splits the work, in words multiplied.
constexpr int64_t kTaskWork = 1 << 17;
constexpr int64_t kTasksPerThread = 6;
constexpr int64_t kBlockTilesMin = 8;
// Weights up to this many bytes stay in a core's L2 cache while a few rows at a time go past them.
constexpr int64_t kResidentBytes = 384 * 1024;
constexpr int64_t kResidentTiles = 2;
// Packed rows that all threads share stay in their L2 and L3 caches.
constexpr int64_t kSharedWords = 1 << 20;

bool is_pointwise(const Windows& w) {
  for (int axis = 0; axis < kSpatial; ++axis) {
    if (w.kernel[axis] != 1 || w.stride[axis] != 1 || w.out[axis] != w.in[axis]) return false;
  }
  return true;
}

}  // namespace

// Ranges of rows first: columns of the same rows pack them once more. Returns the number of tasks.
int64_t QuantizedConv::split(const OpRun& run, StaticProblem& p) const {
  int64_t tiles = ceil_div(p.rows(), kernels_.tile_rows);
  int64_t wanted = 1;
  if (run.threads() > 1) {
    int64_t work = p.rows() * channels_out() * std::max<int64_t>(kernels_.words(k()), 1);
    wanted = std::clamp<int64_t>(work / kTaskWork, 1, kTasksPerThread * run.threads());
  }
  wanted = ceil_div(wanted, groups_);
  p.row_blocks = std::clamp<int64_t>(tiles / kBlockTilesMin, 1, wanted);
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, p.row_blocks), 1, panels());
  // Even ranges: 8 panels go round as 4 times 2, not as 6 times 1 or 2.
  p.col_ranges = ceil_div(panels(), ceil_div(panels(), ranges));
  return p.row_blocks * p.col_ranges * groups_;
}

// Rows that are packed and multiplied at a time.
int64_t QuantizedConv::step(const StaticProblem& p) const {
  int64_t range = ceil_div(panels(), p.col_ranges);
  int64_t bytes = range * kernels_.panel_words(k()) * static_cast<int64_t>(sizeof(Word));
  return (bytes <= kResidentBytes ? kResidentTiles : kBlockTilesMin) * kernels_.tile_rows;
}

// Room for windows that are first written as plain rows, then packed as the kernels want them.
int64_t QuantizedConv::window_bytes(const StaticProblem& p) const {
  if (is_pointwise(p.windows) || kernels_.raw_flip == quantization_.x().flip) return 0;
  // What is written behind the last row has room, too.
  return ceil_div(std::min(p.rows(), step(p)) * k(), 64) * 64 + kWindowRowsBeyond;
}

void QuantizedConv::run_dense(const OpRun& run, std::span<StaticProblem> problems) const {
  int64_t size = 0;
  int64_t tasks = 0;
  int64_t chunks = 0;
  for (StaticProblem& p : problems) {
    p.first_task = tasks;
    p.first_chunk = chunks;
    if (p.rows() == 0 || channels_out() == 0) continue;
    tasks += split(run, p);
    int64_t rows = std::min(p.rows(), step(p));
    int64_t words = kernels_.packed_rows_words(rows, k());
    size = std::max(size, words + window_bytes(p) / static_cast<int64_t>(sizeof(Word)));
    if (p.col_ranges == 1 || groups_ > 1) continue;
    for (int64_t block = 0; block < p.row_blocks; ++block) p.chunks += rows_of(p, block).steps;
    if (p.chunks * words > kSharedWords) p.chunks = 0;
    chunks += p.chunks;
  }
  PackedRows packed{.own = run.scratch_of<Word>(size * run.threads()),
                    .shared = run.scratch_of<Word>(size * chunks),
                    .size = size};
  run.parallel(chunks, [&](int64_t chunk, int) {
    auto next = std::ranges::upper_bound(
        problems, chunk, {}, [](const StaticProblem& p) { return p.first_chunk + p.chunks; });
    Rows rows = chunk_of(*next, chunk - next->first_chunk);
    pack_rows(*next, 0, rows.begin, rows.end - rows.begin, packed.shared + chunk * size);
  });
  run.parallel(tasks, [&](int64_t task, int thread) {
    const StaticProblem& p = problem_of(problems, task);
    PackedRows mine = packed;
    mine.own += thread * size;
    mine.shared += p.first_chunk * size;
    run_task(p, task - p.first_task, mine);
  });
}

// Whole tiles, so that only the last block has a smaller one; 10 tiles go as 5 + 5, not as 8 + 2.
QuantizedConv::Rows QuantizedConv::rows_of(const StaticProblem& p, int64_t block) const {
  int64_t tiles = ceil_div(p.rows(), kernels_.tile_rows);
  int64_t begin = tiles * block / p.row_blocks * kernels_.tile_rows;
  int64_t end = std::min(tiles * (block + 1) / p.row_blocks * kernels_.tile_rows, p.rows());
  return {begin, end, ceil_div(end - begin, step(p))};
}

// The rows of one step, counted over all blocks.
QuantizedConv::Rows QuantizedConv::chunk_of(const StaticProblem& p, int64_t chunk) const {
  for (int64_t block = 0;; ++block) {
    Rows rows = rows_of(p, block);
    if (chunk < rows.steps) return {rows.step_begin(chunk), rows.step_begin(chunk + 1), 1};
    chunk -= rows.steps;
  }
}

// A range of rows times a range of columns of one group.
void QuantizedConv::run_task(const StaticProblem& p, int64_t task, const PackedRows& packed) const {
  int64_t range = task % p.col_ranges;
  int64_t group = task / p.col_ranges % groups_;
  int64_t block = task / (p.col_ranges * groups_);
  int64_t panel = panels() * range / p.col_ranges;
  int64_t panel_end = panels() * (range + 1) / p.col_ranges;
  int64_t col = panel * kernels_.panel_cols;
  int64_t channel = group * group_out() + col;
  const Word* weights =
      packed_.as<Word>() + group * group_words() + panel * kernels_.panel_words(k());
  StaticFinish finish = finish_of(p);
  int64_t size = finish.floats ? 4 : 1;
  Rows rows = rows_of(p, block);
  int64_t chunk = 0;
  for (int64_t before = 0; p.chunks > 0 && before < block; ++before) {
    chunk += rows_of(p, before).steps;
  }
  for (int64_t i = 0; i < rows.steps; ++i) {
    int64_t row = rows.step_begin(i);
    int64_t count = rows.step_begin(i + 1) - row;
    Word* a = p.chunks > 0 ? packed.shared + (chunk + i) * packed.size : packed.own;
    if (p.chunks == 0) pack_rows(p, group, row, count, a);
    StaticFinish here = finish.at(row, group * panels() * kernels_.panel_cols + col);
    if (p.residual) here.residual = p.residual + row * channels_out() + channel;
    kernels_.multiply({.a = a,
                       .b = weights,
                       .rows = count,
                       .k = kernels_.words(k()),
                       .cols = std::min(group_out(), panel_end * kernels_.panel_cols) - col,
                       .y = p.y + (row * channels_out() + channel) * size,
                       .y_stride = channels_out(),
                       .finish = here});
  }
}

void QuantizedConv::pack_rows(const StaticProblem& p, int64_t group, int64_t row, int64_t rows,
                              Word* packed) const {
  int64_t channel = group * weight_[1];
  if (is_pointwise(p.windows)) {
    return kernels_.pack_rows(p.x + row * channels_in() + channel, channels_in(), rows, k(),
                              quantization_.x(), packed);
  }
  WindowRows windows{.x = p.x + channel,
                     .end = p.x + p.images * p.windows.in_size() * channels_in(),
                     .pixel = weight_[1],
                     .pixel_stride = channels_in(),
                     .windows = &p.windows,
                     .first = row,
                     .count = rows,
                     .padding = padding(),
                     .tail = 0};
  if (window_bytes(p) == 0) {
    constexpr int64_t kPerWord = sizeof(Word);
    return windows_.pack(windows, {.first = reinterpret_cast<uint8_t*>(packed),
                                   .row_stride = kGemmRowStride * kPerWord,
                                   .block = kGemmBlockWords * kPerWord,
                                   .block_stride = rows * kGemmRowStride * kPerWord});
  }
  auto* plain = reinterpret_cast<uint8_t*>(packed + kernels_.packed_rows_words(rows, k()));
  windows_.pack(windows, {.first = plain, .row_stride = k(), .block = k(), .block_stride = k()});
  kernels_.pack_rows(plain, k(), rows, k(), quantization_.x(), packed);
}

}  // namespace headrace
