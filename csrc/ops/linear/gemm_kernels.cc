// Packing and the register-tiled product, once per ISA. See gemm.h for the layout.
#include "ops/linear/gemm.h"
#include "ops/simd/math.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
// A panel is two vectors wide. A tile's accumulators, its row of B and one broadcast element of A
// fill the register file: 28 + 2 + 1 of 32 with AVX-512, 12 + 2 + 1 of 16 elsewhere.
constexpr int64_t kCols = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
constexpr bool kManyRegisters = true;
#else
constexpr int kTileRows = 6;
constexpr bool kManyRegisters = false;
#endif
constexpr int kMaxPanels = 4;

// Panels that a tile of few rows spans, so that enough chains are in flight to hide the latency of
// the multiply-add.
constexpr int panels_of(int rows) {
  if (rows == 1) return 4;
  if (rows <= 3) return kManyRegisters ? 4 : 2;
  return 1;
}

constexpr int64_t kTileSize =
    kTileRows * kCols > 3 * kMaxPanels* kCols ? kTileRows * kCols : 3 * kMaxPanels * kCols;

// `a` is at the tile's first row; `blocks_apart` is the distance of A's blocks. Writes the tile to
// `out`, rows kPanels * kCols apart. Fetches `next` into the L2 cache on the way, as far as one
// panel reaches.
using Tile = void (*)(const float* a, int64_t blocks_apart, const float* b, int64_t k,
                      const float* next, float* out);

template <int kRows, int kPanels>
void tile(const float* a, int64_t blocks_apart, const float* b, int64_t k, const float* next,
          float* out) {
  constexpr int kVectors = 2 * kPanels;
  Vf acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) acc[r][j] = splat(0.0f);
  }
  const int64_t panel = k * kCols;
  for (int64_t begin = 0; begin < k; begin += kGemmBlockK, a += blocks_apart) {
    const int64_t count = k - begin < kGemmBlockK ? k - begin : kGemmBlockK;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t line = 0; line < kCols; line += 16) __builtin_prefetch(next + line, 0, 2);
      next += kCols;
      // The next tile's rows lie right behind this one's; about as many lines as steps.
      if constexpr (kRows >= 6) {
        __builtin_prefetch(a + kRows * kGemmRowStride + i * kRows, 0, 2);
      }
      if constexpr (kPanels == 1) {
        Vf b0 = load(b);
        Vf b1 = load(b + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          Vf x = splat(a[r * kGemmRowStride + i]);
          acc[r][0] = fma(x, b0, acc[r][0]);
          acc[r][1] = fma(x, b1, acc[r][1]);
        }
      } else {
        Vf x[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) x[r] = splat(a[r * kGemmRowStride + i]);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          Vf y = load(b + (j / 2) * panel + (j % 2) * kLanes);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) acc[r][j] = fma(x[r], y, acc[r][j]);
        }
      }
      b += kCols;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) store(out + (r * kVectors + j) * kLanes, acc[r][j]);
  }
}

constexpr Tile kTiles[kTileRows] = {
    tile<1, 1>,  tile<2, 1>,  tile<3, 1>, tile<4, 1>,  tile<5, 1>,  tile<6, 1>,
#if defined(__AVX512F__)
    tile<7, 1>,  tile<8, 1>,  tile<9, 1>, tile<10, 1>, tile<11, 1>, tile<12, 1>,
    tile<13, 1>, tile<14, 1>,
#endif
};
constexpr Tile kWideTiles[3] = {tile<1, panels_of(1)>, tile<2, panels_of(2)>,
                                tile<3, panels_of(3)>};

// The rest of an element's way, for a vector or for the `n` < kLanes elements of a tail.
template <class Act>
HR_INLINE Vf finish_vector(const Epilogue& e, Act act, Vf x, Vf bias, Vf residual) {
  if (e.bias != nullptr) x = x + bias;
  if (e.residual == nullptr) return act(x);
  return e.residual_first ? act(x + residual) : act(x) + residual;
}

// Takes a finished tile at (row, col) of C through the epilogue.
template <class Act>
void finish_with(const GemmBlock& block, Act act, const float* out, int64_t out_stride, int64_t row,
                 int64_t rows, int64_t col, int64_t cols) {
  const Epilogue& e = block.epilogue;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = out + r * out_stride;
    float* c = block.c + (row + r) * block.c_stride + col;
    const float* residual = e.residual ? e.residual + (row + r) * e.residual_stride + col : nullptr;
    const float* bias = e.bias && !e.bias_per_row ? e.bias + col : nullptr;
    Vf row_bias = splat(e.bias && e.bias_per_row ? e.bias[row + r] : 0.0f);
    int64_t i = 0;
    for (; i + kLanes <= cols; i += kLanes) {
      Vf b = bias ? load(bias + i) : row_bias;
      Vf y = residual ? load(residual + i) : row_bias;
      store(c + i, finish_vector(e, act, load(x + i), b, y));
    }
    if (i < cols) {
      int64_t n = cols - i;
      Vf b = bias ? load(bias + i, n) : row_bias;
      Vf y = residual ? load(residual + i, n) : row_bias;
      store(c + i, finish_vector(e, act, load(x + i, n), b, y), n);
    }
  }
}

void finish(const GemmBlock& block, const float* out, int64_t out_stride, int64_t row, int64_t rows,
            int64_t col, int64_t cols) {
  auto with = [&](auto act) { finish_with(block, act, out, out_stride, row, rows, col, cols); };
  switch (block.epilogue.activation) {
    case Activation::kNone:
      return with([](Vf x) { return x; });
    case Activation::kRelu:
      // max(0, x) and not max(x, 0): the second operand comes out where x is NaN.
      return with([](Vf x) { return max(splat(0.0f), x); });
    case Activation::kClip: {
      Vf low = splat(block.epilogue.clip_min);
      Vf high = splat(block.epilogue.clip_max);
      return with([=](Vf x) { return min(high, max(low, x)); });
    }
    case Activation::kGeluErf:
      return with([](Vf x) { return gelu_erf(x); });
    case Activation::kGeluTanh:
      return with([](Vf x) { return gelu_tanh(x); });
    case Activation::kSigmoid:
      return with([](Vf x) { return sigmoid(x); });
    case Activation::kTanh:
      return with([](Vf x) { return tanh(x); });
    case Activation::kSilu:
      return with([](Vf x) { return silu(x); });
  }
}

void multiply(const GemmBlock& block) {
  float out[kTileSize];
  const int64_t panel = block.k * kCols;
  const int64_t blocks_apart =
      (block.rows_packed > 0 ? block.rows_packed : block.rows) * kGemmRowStride;
  const int64_t tiles = (block.rows + kTileRows - 1) / kTileRows;
  const float* b = block.b;
  int64_t col = 0;
  if (block.rows <= 3) {
    const int64_t wide = panels_of(static_cast<int>(block.rows)) * kCols;
    for (; block.cols - col >= wide; col += wide, b += wide * block.k) {
      kWideTiles[block.rows - 1](block.a, blocks_apart, b, block.k, b + wide * block.k, out);
      finish(block, out, wide, 0, block.rows, col, wide);
    }
  }
  for (; col < block.cols; col += kCols, b += panel) {
    const int64_t cols = block.cols - col < kCols ? block.cols - col : kCols;
    for (int64_t t = 0; t < tiles; ++t) {
      // Even tiles, not full ones and a rest: 16 rows run as 8 + 8.
      const int64_t row = block.rows * t / tiles;
      const int64_t rows = block.rows * (t + 1) / tiles - row;
      // The last tile brings in the next panel; the others find their own panel there already.
      const float* next = t + 1 == tiles ? b + panel : b;
      kTiles[rows - 1](block.a + row * kGemmRowStride, blocks_apart, b, block.k, next, out);
      finish(block, out, kCols, row, rows, col, cols);
    }
  }
}

void finish_products(const GemmBlock& block, const float* products, int64_t stride) {
  finish(block, products, stride, 0, block.rows, 0, block.cols);
}

void pack_rows(Matrix a, int64_t rows, int64_t k, float* packed) {
  for (int64_t begin = 0; begin < k; begin += kGemmBlockK) {
    const int64_t count = k - begin < kGemmBlockK ? k - begin : kGemmBlockK;
    for (int64_t r = 0; r < rows; ++r, packed += kGemmRowStride) {
      if (a.transposed) {
        const float* from = a.data + begin * a.stride + r;
        for (int64_t i = 0; i < count; ++i) packed[i] = from[i * a.stride];
        continue;
      }
      const float* from = a.data + r * a.stride + begin;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(packed + i, load(from + i));
      for (; i < count; ++i) packed[i] = from[i];
    }
  }
}

// One panel, of B's first `count` columns.
void pack_panel(Matrix b, int64_t k, int64_t count, float scale, float* packed) {
  if (b.transposed) {
    // Column by column, so that reads run along memory; the panel stays in the cache.
    for (int64_t n = 0; n < kCols; ++n) {
      const float* from = b.data + n * b.stride;
      for (int64_t i = 0; i < k; ++i) packed[i * kCols + n] = n < count ? from[i] * scale : 0.0f;
    }
    return;
  }
  const Vf factor = splat(scale);
  for (int64_t i = 0; i < k; ++i, packed += kCols) {
    const float* from = b.data + i * b.stride;
    for (int64_t n = 0; n < kCols; n += kLanes) {
      int64_t left = count - n;
      Vf x = left >= kLanes ? load(from + n) : left > 0 ? load(from + n, left) : splat(0.0f);
      store(packed + n, x * factor);
    }
  }
}

void pack_panels(Matrix b, int64_t k, int64_t cols, float scale, float* packed) {
  for (int64_t col = 0; col < cols; col += kCols, packed += k * kCols) {
    const int64_t count = cols - col < kCols ? cols - col : kCols;
    // Matrix's members are inline functions that other ISAs' files may share: none is called here.
    const float* from = b.data + (b.transposed ? col * b.stride : col);
    pack_panel({from, b.stride, b.transposed}, k, count, scale, packed);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .pack_rows = pack_rows,
    .pack_panels = pack_panels,
    .multiply = multiply,
    .finish = finish_products,
};

}  // namespace headrace::HEADRACE_ISA_NS
