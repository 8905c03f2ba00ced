// 3 x 3 convolutions of stride 1 by Winograd's minimal filtering, F(m x m, 3 x 3): a tile of m x m
// pixels of Y comes of (m + 2)^2 products per pair of channels instead of 9 m^2,
//
//   Y = A^T [(G g G^T) * (B^T d B)] A,
//
// which is a quarter as many for m = 4. The sums over X's channels are one matrix product per
// point. A thread takes some tiles through all three steps, so that only they are ever transformed
// at a time.
//
// The matrices are Cook and Toom's for the points 0, 1, -1 and infinity (m = 2) and
// 0, +-sqrt(1/2), +-sqrt(2) and infinity (m = 4). With 1 and 2 in place of the roots errors would
// be some five times as large (compare Barabasz et al., "Error analysis and improving the accuracy
// of Winograd convolution for deep neural networks", 2020). Weights are transformed in double
// precision and rounded once.
#include <algorithm>
#include <cmath>

#include "ops/conv/conv.h"
#include "ops/conv/winograd_kernels.h"

namespace headrace {
namespace {

// Tiles a thread transforms at a time: as many as leave their points, before and after the
// product, about this much of the caches, but enough to use weights well that come from afar.
constexpr int64_t kStepBytes = 768 * 1024;
constexpr int64_t kStepTilesMin = 28;
constexpr int64_t kStepTilesMax = 56;
// Tiles that make reading the weights once more worth it, and tasks per thread.
constexpr int64_t kBlockTilesMin = 12;
constexpr int64_t kTasksPerThread = 6;

// Row p of G.
void weight_row(int64_t tile, int64_t point, double (&row)[3]) {
  const double half = std::sqrt(0.5);
  const double two[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  const double four[6][3] = {{1, 0, 0},
                             {-2 / 3.0, -2 / 3.0 * half, -1 / 3.0},
                             {-2 / 3.0, 2 / 3.0 * half, -1 / 3.0},
                             {1 / 6.0, 2 * half / 6.0, 1 / 3.0},
                             {1 / 6.0, -2 * half / 6.0, 1 / 3.0},
                             {0, 0, 1}};
  std::ranges::copy(tile == 2 ? two[point] : four[point], row);
}

// Tiles of one image.
struct TileGrid {
  int64_t rows;
  int64_t cols;
};

class WinogradWay : public ConvWay {
 public:
  WinogradWay(Isa isa, int64_t tile)
      : tile_(tile),
        points_(tile + 2),
        gemm_(HEADRACE_KERNELS(isa, gemm_kernels)),
        transforms_(tile == 2 ? HEADRACE_KERNELS(isa, winograd_kernels).two
                              : HEADRACE_KERNELS(isa, winograd_kernels).four) {}

  int64_t packed_words(const ConvWeight& w) const override {
    return points_ * points_ * point_words(w);
  }
  // The weights of one point.
  int64_t packing_room(const ConvWeight& w) const override { return w.group_out * w.group_in; }
  void pack(const ConvWeight& w, Word* packed, float* room) const override;
  void run(const OpRun& run, std::span<ConvProblem> problems) const override;

 private:
  // What a thread works in.
  struct Room {
    const float* zeros;  // a pixel
    Word* pixels;        // transformed, packed as rows: [points^2, tiles, channels in]
    float* products;     // [points^2, tiles, columns]
    float* sums;         // [tile^2, columns]
  };
  // Tiles of Y, counted over all images, times columns.
  struct Part {
    int64_t col, col_end;
    int64_t tile = 0;
    int64_t tiles = 0;
  };

  TileGrid grid(const Windows& w) const {
    return {ceil_div(w.out[1], tile_), ceil_div(w.out[2], tile_)};
  }
  int64_t tiles_of(const ConvProblem& p) const {
    return p.images * grid(p.windows).rows * grid(p.windows).cols;
  }
  int64_t panels(const ConvWeight& w) const { return ceil_div(w.group_out, gemm_.panel_cols); }
  int64_t point_words(const ConvWeight& w) const {
    return panels(w) * gemm_.panel_words(w.group_in);
  }
  // Columns of the widest range.
  int64_t range_cols(const ConvProblem& p) const {
    return ceil_div(panels(p.weight), p.col_ranges) * gemm_.panel_cols;
  }
  int64_t step(const ConvProblem& p) const;
  void split(const OpRun& run, ConvProblem& p) const;
  void run_task(const ConvProblem& p, int64_t task, const Room& room) const;
  void transform_pixels(const ConvProblem& p, const Part& part, const Room& room) const;
  void multiply(const ConvProblem& p, const Part& part, const Room& room) const;
  void finish(const ConvProblem& p, const Part& part, const Room& room) const;

  int64_t tile_;
  int64_t points_;
  const GemmKernels& gemm_;
  const WinogradTransforms& transforms_;
};

void WinogradWay::pack(const ConvWeight& w, Word* packed, float* room) const {
  int64_t pairs = w.group_out * w.group_in;
  for (int64_t point = 0; point < points_ * points_; ++point) {
    double down[3], across[3];
    weight_row(tile_, point / points_, down);
    weight_row(tile_, point % points_, across);
    double factors[9];
    for (int i = 0; i < 9; ++i) factors[i] = down[i / 3] * across[i % 3];
    for (int64_t pair = 0; pair < pairs; ++pair) {
      double sum = 0;
      for (int i = 0; i < 9; ++i) sum += factors[i] * double{w.data[pair * 9 + i]};
      room[pair] = static_cast<float>(sum);
    }
    gemm_.pack_panels({room, w.group_in, true}, w.group_in, w.group_out, 1.0f,
                      packed + point * point_words(w));
  }
}

// Ranges of tiles first, as many for each thread: columns of the same tiles transform them again.
void WinogradWay::split(const OpRun& run, ConvProblem& p) const {
  int64_t threads = run.threads();
  int64_t blocks = threads == 1 ? 1 : tiles_of(p) / kBlockTilesMin;
  p.row_blocks = std::clamp<int64_t>(blocks / threads, 0, kTasksPerThread) * threads;
  p.col_ranges = 1;
  if (p.row_blocks > 0) return;
  p.row_blocks = std::max<int64_t>(blocks, 1);
  p.col_ranges = std::clamp<int64_t>(threads / p.row_blocks, 1, panels(p.weight));
}

int64_t WinogradWay::step(const ConvProblem& p) const {
  int64_t bytes = points_ * points_ * (p.weight.group_in + range_cols(p)) * int64_t{sizeof(float)};
  return std::min(tiles_of(p), std::clamp(kStepBytes / bytes, kStepTilesMin, kStepTilesMax));
}

void WinogradWay::run(const OpRun& run, std::span<ConvProblem> problems) const {
  int64_t points = points_ * points_;
  int64_t channels = 0;
  int64_t pixels = 0;
  int64_t products = 0;
  int64_t sums = 0;
  int64_t tasks = number_tasks(problems, [&](ConvProblem& p) -> int64_t {
    if (p.rows() == 0 || p.channels_out() == 0) return 0;
    split(run, p);
    channels = std::max(channels, p.channels_in());
    pixels = std::max(pixels, points * gemm_.packed_rows_words(step(p), p.weight.group_in));
    products = std::max(products, points * step(p) * range_cols(p));
    sums = std::max(sums, tile_ * tile_ * range_cols(p));
    return p.row_blocks * p.col_ranges;
  });
  float* zeros = run.scratch_of<float>(channels);
  std::fill_n(zeros, channels, 0.0f);
  Word* all_pixels = run.scratch_of<Word>(pixels * run.threads());
  float* all_products = run.scratch_of<float>(products * run.threads());
  float* all_sums = run.scratch_of<float>(sums * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const ConvProblem& p = problem_of(problems, task);
    run_task(p, task - p.first_task,
             {zeros, all_pixels + thread * pixels, all_products + thread * products,
              all_sums + thread * sums});
  });
}

void WinogradWay::run_task(const ConvProblem& p, int64_t task, const Room& room) const {
  int64_t range = task % p.col_ranges;
  int64_t block = task / p.col_ranges;
  Part part{.col = panels(p.weight) * range / p.col_ranges * gemm_.panel_cols,
            .col_end = panels(p.weight) * (range + 1) / p.col_ranges * gemm_.panel_cols};
  part.col_end = std::min(part.col_end, p.channels_out());
  int64_t begin = tiles_of(p) * block / p.row_blocks;
  int64_t end = tiles_of(p) * (block + 1) / p.row_blocks;
  int64_t steps = ceil_div(end - begin, step(p));
  for (int64_t i = 0; i < steps; ++i) {
    part.tile = begin + (end - begin) * i / steps;
    part.tiles = begin + (end - begin) * (i + 1) / steps - part.tile;
    transform_pixels(p, part, room);
    multiply(p, part, room);
    finish(p, part, room);
  }
}

void WinogradWay::transform_pixels(const ConvProblem& p, const Part& part, const Room& room) const {
  const Windows& w = p.windows;
  auto [grid_rows, grid_cols] = grid(w);
  int64_t channels = p.weight.group_in;
  int64_t point_stride = gemm_.packed_rows_words(part.tiles, channels);
  const float* pixels[kWinogradPointsMax * kWinogradPointsMax];
  for (int64_t t = 0; t < part.tiles; ++t) {
    int64_t index = part.tile + t;
    int64_t left = index % grid_cols * tile_ - w.pad_begin[2];
    int64_t top = index / grid_cols % grid_rows * tile_ - w.pad_begin[1];
    int64_t image = index / (grid_cols * grid_rows) * w.in_size();
    for (int64_t i = 0; i < points_; ++i) {
      for (int64_t j = 0; j < points_; ++j) {
        int64_t h = top + i;
        int64_t x = left + j;
        bool inside = h >= 0 && h < w.in[1] && x >= 0 && x < w.in[2];
        pixels[i * points_ + j] =
            inside ? reinterpret_cast<const float*>(p.x_at(image + h * w.in[2] + x, 0))
                   : room.zeros;
      }
    }
    transforms_.input(pixels, channels,
                      {.first = reinterpret_cast<float*>(room.pixels) + t * kGemmRowStride,
                       .point_stride = point_stride,
                       .block = kGemmBlockWords,
                       .block_stride = part.tiles * kGemmRowStride});
  }
}

void WinogradWay::multiply(const ConvProblem& p, const Part& part, const Room& room) const {
  int64_t channels = p.weight.group_in;
  int64_t cols = part.col_end - part.col;
  const Word* weights = p.packed + part.col / gemm_.panel_cols * gemm_.panel_words(channels);
  for (int64_t point = 0; point < points_ * points_; ++point) {
    int64_t next = (point + 1) % (points_ * points_);
    gemm_.multiply({.a = room.pixels + point * gemm_.packed_rows_words(part.tiles, channels),
                    .b = weights + point * point_words(p.weight),
                    .next = weights + next * point_words(p.weight),
                    .rows = part.tiles,
                    .k = channels,
                    .cols = cols,
                    .c = room.products + point * part.tiles * cols,
                    .c_stride = cols,
                    .epilogue = {}});
  }
}

void WinogradWay::finish(const ConvProblem& p, const Part& part, const Room& room) const {
  const Windows& w = p.windows;
  auto [grid_rows, grid_cols] = grid(w);
  int64_t cols = part.col_end - part.col;
  for (int64_t t = 0; t < part.tiles; ++t) {
    transforms_.output(room.products + t * cols, part.tiles * cols, cols, room.sums);
    int64_t index = part.tile + t;
    int64_t left = index % grid_cols * tile_;
    int64_t top = index / grid_cols % grid_rows * tile_;
    int64_t image = index / (grid_cols * grid_rows) * w.out_size();
    int64_t width = std::min(tile_, w.out[2] - left);
    for (int64_t i = 0; i < std::min(tile_, w.out[1] - top); ++i) {
      int64_t row = image + (top + i) * w.out[2] + left;
      gemm_.finish({.rows = width,
                    .cols = cols,
                    .c = p.y_at(row, part.col),
                    .c_stride = p.channels_out(),
                    .epilogue = p.epilogue_at(row, part.col)},
                   room.sums + i * tile_ * cols, cols);
    }
  }
}

}  // namespace

bool fits_winograd(const ConvWeight& weight, const WindowSpec& window, const Shape& shape) {
  bool plain = shape.rank() == 4 && shape[2] == 3 && shape[3] == 3 && weight.groups == 1;
  for (int axis = 1; axis < kSpatial; ++axis) {
    plain = plain && window.stride[axis] == 1 && window.dilation[axis] == 1;
  }
  return plain;
}

std::unique_ptr<ConvWay> make_winograd_way(Isa isa, int64_t tile) {
  return std::make_unique<WinogradWay>(isa, tile);
}

}  // namespace headrace
