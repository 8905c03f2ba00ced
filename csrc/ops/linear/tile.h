// The register-tiled product, for any kind of word: see gemm.h for the layout. A *Dot class says
// what a word is and how two of them are multiplied and added:
//
//   Sum                     a vector of sums, floats or integers
//   zero()
//   broadcast(const Word*)  one word of A as a factor of all lanes
//   load(const Word*)       a vector of B's words
//   dot(broadcast, load, Sum)
//   to_floats(Sum, ...)     for integers: what they stand for
#pragma once

#include "ops/linear/epilogue.h"
#include "ops/linear/gemm.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
// A panel is two vectors wide. A tile's accumulators, its row of B and one broadcast element of A
// fill the register file: 28 + 2 + 1 of 32 with AVX-512, 12 + 2 + 1 of 16 with AVX2 and SSE. On
// NEON, with 24 of 32, a Dot may hold its row of B in four.
constexpr int64_t kCols = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
constexpr bool kManyRegisters = true;
#elif defined(__aarch64__)
constexpr int kTileRows = 12;
constexpr bool kManyRegisters = true;
#else
constexpr int kTileRows = 6;
constexpr bool kManyRegisters = false;
#endif
constexpr int kMaxPanels = 4;

// The classes of tile_matrix.h, whose sums take a register for every pair of rows, whole or not.
template <class Dot>
concept SumsOfRowPairs = requires { typename Dot::Block; };

// Panels that a tile of few rows spans, so that enough chains are in flight to hide the latency of
// the multiply-add.
template <class Dot>
constexpr int panels_of(int rows) {
  if (rows == 1) return 4;
  if (rows == 3 && SumsOfRowPairs<Dot>) return 2;
  if (rows <= 3) return kManyRegisters ? 4 : 2;
  return 1;
}

constexpr int64_t kTileSize =
    kTileRows * kCols > 3 * kMaxPanels* kCols ? kTileRows * kCols : 3 * kMaxPanels * kCols;

// The rows of a tile among the packed ones.
struct TileRows {
  const Word* first;
  int64_t blocks_apart;
  // From these rows to those of the tile after this one: never to what lies behind the last, since
  // another thread may pack its own rows there, and would lose them to this one's cache.
  int64_t ahead;
};

// The tile of `rows` rows from `row` on, of a block's `all`.
HR_INLINE TileRows rows_of_tile(const Word* a, int64_t blocks_apart, int64_t row, int64_t rows,
                                int64_t all) {
  return {a + row * kGemmRowStride, blocks_apart,
          (row + rows < all ? rows : -row) * kGemmRowStride};
}

// `panel` is the distance of B's panels. Writes the tile to `out`, rows kPanels * kCols apart. On
// the way fetches the next tile's rows and, `fetched` words for every word of k, `next` into the L2
// cache.
using Tile = void (*)(const TileRows& rows, const Word* b, int64_t panel, int64_t k,
                      const Word* next, int64_t fetched, float* out);

template <class Dot, int kRows, int kVectors>
HR_INLINE void sum_up(const TileRows& rows, const Word* b, int64_t panel, int64_t k,
                      const Word* next, int64_t fetched,
                      typename Dot::Sum (&acc)[kRows][kVectors]) {
  const Word* a = rows.first;
  const int64_t blocks_apart = rows.blocks_apart;
  const int64_t ahead = rows.ahead;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) acc[r][j] = Dot::zero();
  }
  for (int64_t begin = 0; begin < k; begin += kGemmBlockWords, a += blocks_apart) {
    const int64_t count = k - begin < kGemmBlockWords ? k - begin : kGemmBlockWords;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t line = 0; line < kCols; line += 16) __builtin_prefetch(next + line, 0, 2);
      next += fetched;
      // The next tile's rows: about as many lines as steps.
      if constexpr (kRows >= 6) __builtin_prefetch(a + ahead + i * kRows, 0, 2);
      if constexpr (kVectors <= 2) {
        auto b0 = Dot::load(b);
        auto b1 = Dot::load(b + (kVectors - 1) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          auto x = Dot::broadcast(a + r * kGemmRowStride + i);
          acc[r][0] = Dot::dot(x, b0, acc[r][0]);
          if constexpr (kVectors == 2) acc[r][1] = Dot::dot(x, b1, acc[r][1]);
        }
      } else {
        decltype(Dot::broadcast(a)) x[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) x[r] = Dot::broadcast(a + r * kGemmRowStride + i);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          auto y = Dot::load(b + (j / 2) * panel + (j % 2) * kLanes);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) acc[r][j] = Dot::dot(x[r], y, acc[r][j]);
        }
      }
      b += kCols;
    }
  }
}

template <class Dot, int kRows, int kVectors>
void tile(const TileRows& rows, const Word* b, int64_t panel, int64_t k, const Word* next,
          int64_t fetched, float* out) {
  typename Dot::Sum acc[kRows][kVectors];
  sum_up<Dot, kRows, kVectors>(rows, b, panel, k, next, fetched, acc);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      Vf sum;
      __builtin_memcpy(&sum, &acc[r][j], sizeof(sum));
      store(out + (r * kVectors + j) * kLanes, sum);
    }
  }
}

// Turns a tile's integer sums into floats, in place. `row` and `column` are what the kernels keep
// behind the words of A's first row and of B's first panel. Not part of tile(): there GCC 12 would
// run out of registers in its inner loop for the sake of what follows.
template <class Dot>
HR_INLINE void settle(float* out, int64_t rows, int panels, const Word* row, const Word* column,
                      int64_t panel) {
  if constexpr (__is_same(typename Dot::Sum, Vi)) {
    for (int64_t r = 0; r < rows; ++r, row += kGemmRowStride) {
      const Word* behind = column;
      for (int p = 0; p < panels; ++p, behind += panel) {
        for (int64_t j = 0; j < kCols; j += kLanes, out += kLanes) {
          store(out, Dot::to_floats(as_int(load(out)), row, behind + j));
        }
      }
    }
  }
}

template <class Dot, int kRows, int kPanels>
constexpr Tile kTile = tile<Dot, kRows, 2 * kPanels>;

template <class Dot>
constexpr Tile kTiles[kTileRows] = {
    kTile<Dot, 1, 1>,  kTile<Dot, 2, 1>,  kTile<Dot, 3, 1>,
    kTile<Dot, 4, 1>,  kTile<Dot, 5, 1>,  kTile<Dot, 6, 1>,
#if defined(__AVX512F__) || defined(__aarch64__)
    kTile<Dot, 7, 1>,  kTile<Dot, 8, 1>,  kTile<Dot, 9, 1>,
    kTile<Dot, 10, 1>, kTile<Dot, 11, 1>, kTile<Dot, 12, 1>,
#endif
#if defined(__AVX512F__)
    kTile<Dot, 13, 1>, kTile<Dot, 14, 1>,
#endif
};
template <class Dot>
constexpr Tile kWideTiles[3] = {kTile<Dot, 1, panels_of<Dot>(1)>, kTile<Dot, 2, panels_of<Dot>(2)>,
                                kTile<Dot, 3, panels_of<Dot>(3)>};

// The same for a whole panel or half of one, with an epilogue in the registers: for the most common
// ones, and the heights that all but small products are cut into.
using StraightTile = void (*)(const TileRows& rows, const Word* b, int64_t k, const Word* next,
                              int64_t fetched, const GemmBlock& block, int64_t row, int64_t col);
constexpr int kStraightHeights = 3;

#if defined(__AVX2__) || defined(__aarch64__)
template <class Dot>
constexpr bool kHasStraight = __is_same(typename Dot::Sum, Vf) && !SumsOfRowPairs<Dot>;
#else
template <class Dot>
constexpr bool kHasStraight = false;
#endif

// Without this GCC 12 begins the epilogue within the loop before it, and runs out of registers.
HR_INLINE void keep_in_register([[maybe_unused]] Vf& x) {
#if defined(__aarch64__)
  asm volatile("" : "+w"(x.v)::"memory");
#elif defined(__AVX2__)
  asm volatile("" : "+v"(x.v)::"memory");
#endif
}

template <class Dot, class T, bool kResidual, int kVectors, int kRows>
void straight_tile(const TileRows& rows, const Word* b, int64_t k, const Word* next,
                   int64_t fetched, const GemmBlock& block, int64_t row, int64_t col) {
  Vf acc[kRows][kVectors];
  sum_up<Dot, kRows, kVectors>(rows, b, 0, k, next, fetched, acc);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kVectors; ++j) keep_in_register(acc[r][j]);
  }
  const Epilogue& e = block.epilogue;
  T* c = static_cast<T*>(block.c) + row * block.c_stride + col;
  const T* residual = static_cast<const T*>(e.residual);
  if constexpr (kResidual) residual += row * e.residual_stride + col;
  // Whatever x is: x + -0 is x, and so is x within two infinities.
  Vf bias[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    bias[j] = e.bias != nullptr ? load(e.bias + col + j * kLanes) : splat(-0.0f);
  }
  const bool clips = e.activation == Activation::kClip;
  const bool bounded = clips || e.activation == Activation::kRelu;
  const Vf low = splat(clips ? e.clip_min : bounded ? 0.0f : -__builtin_inff());
  const Vf high = splat(clips ? e.clip_max : __builtin_inff());
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r, c += block.c_stride) {
    for (int j = 0; j < kVectors; ++j) {
      Vf x = acc[r][j] + bias[j];
      if constexpr (kResidual) x = x + get(residual + j * kLanes);
      put(c + j * kLanes, min(high, max(low, x)));
    }
    if constexpr (kResidual) residual += e.residual_stride;
  }
}

// For a panel, then for half of one; the tallest first.
template <class Dot, class T, bool kResidual>
constexpr StraightTile kStraightTiles[2][kStraightHeights] = {
    {
        straight_tile<Dot, T, kResidual, 2, kTileRows>,
        straight_tile<Dot, T, kResidual, 2, kTileRows - 1>,
        straight_tile<Dot, T, kResidual, 2, kTileRows - 2>,
    },
    {
        straight_tile<Dot, T, kResidual, 1, kTileRows>,
        straight_tile<Dot, T, kResidual, 1, kTileRows - 1>,
        straight_tile<Dot, T, kResidual, 1, kTileRows - 2>,
    },
};
using StraightTiles = const StraightTile (*)[kStraightHeights];

// Those for the epilogue of `block`; null where there are none.
template <class Dot>
StraightTiles straight_tiles(const GemmBlock& block) {
  if constexpr (kHasStraight<Dot>) {
    const Epilogue& e = block.epilogue;
    const bool simple = e.activation == Activation::kNone || e.activation == Activation::kRelu ||
                        e.activation == Activation::kClip;
    if (!simple) return nullptr;
    if (e.residual == nullptr) {
      return block.c_bf16 ? kStraightTiles<Dot, uint16_t, false>
                          : kStraightTiles<Dot, float, false>;
    }
    const bool first = e.residual_first || e.activation == Activation::kNone;
    if (!first || e.residual_bf16 != block.c_bf16) return nullptr;
    return block.c_bf16 ? kStraightTiles<Dot, uint16_t, true> : kStraightTiles<Dot, float, true>;
  }
  return nullptr;
}

// Brings in `rows` rows of a panel's width, elements of 4 bytes or else of 2.
template <int kToWrite>
HR_INLINE void fetch_panel_rows(const void* first, int64_t stride, int64_t rows, bool wide) {
  const auto* at = static_cast<const char*>(first);
  stride *= wide ? 4 : 2;
  if (kCols > 16 && wide) {
    for (int64_t r = 0; r < rows; ++r, at += stride) {
      __builtin_prefetch(at, kToWrite, 3);
      __builtin_prefetch(at + 64, kToWrite, 3);
    }
  } else {
    for (int64_t r = 0; r < rows; ++r, at += stride) __builtin_prefetch(at, kToWrite, 3);
  }
}

// Brings in what the epilogue will read and write: rows lie apart, so no hardware foresees it.
HR_INLINE void fetch_rows(const GemmBlock& block, int64_t row, int64_t rows, int64_t col) {
  const Epilogue& e = block.epilogue;
  auto at = [&](const void* base, int64_t stride, bool wide) {
    return static_cast<const char*>(base) + (row * stride + col) * (wide ? 4 : 2);
  };
  const bool wide_c = !block.c_bf16;
  fetch_panel_rows<1>(at(block.c, block.c_stride, wide_c), block.c_stride, rows, wide_c);
  if (e.residual == nullptr || e.residual == block.c) return;
  const bool wide = !e.residual_bf16;
  fetch_panel_rows<0>(at(e.residual, e.residual_stride, wide), e.residual_stride, rows, wide);
}

template <class Dot>
void multiply(const GemmBlock& block) {
  float out[kTileSize];
  const int64_t panel = block.k * kCols + Dot::kPanelExtra;
  const int64_t blocks_apart =
      (block.rows_packed > 0 ? block.rows_packed : block.rows) * kGemmRowStride;
  const int64_t tiles = (block.rows + kTileRows - 1) / kTileRows;
  const int64_t fetched = (kCols + tiles - 1) / tiles;
  const Word* b = block.b;
  const auto* fetch = static_cast<const Word*>(block.fetch);
  const Word* fetch_end = fetch + block.fetch_bytes / static_cast<int64_t>(sizeof(Word));
  const StraightTiles straight = straight_tiles<Dot>(block);
  int64_t col = 0;
  if (block.rows <= 3) {
    const int panels = panels_of<Dot>(static_cast<int>(block.rows));
    const int64_t wide = panels * kCols;
    for (; block.cols - col >= wide; col += wide, b += panels * panel) {
      const Word* next =
          block.cols - col > wide || block.next == nullptr ? b + panels * panel : block.next;
      kWideTiles<Dot>[block.rows - 1]({block.a, blocks_apart, 0}, b, panel, block.k, next, kCols,
                                      out);
      settle<Dot>(out, block.rows, panels, block.a + kGemmBlockWords, b + block.k * kCols, panel);
      finish(block, out, wide, 0, block.rows, col, wide);
    }
  }
  for (; col < block.cols; col += kCols, b += panel) {
    const int64_t cols = block.cols - col < kCols ? block.cols - col : kCols;
    const Word* after = block.cols - col > kCols || block.next == nullptr ? b + panel : block.next;
    for (int64_t t = 0; t < tiles; ++t) {
      // Even tiles, not full ones and a rest: 16 rows run as 8 + 8.
      const int64_t row = block.rows * t / tiles;
      const int64_t rows = block.rows * (t + 1) / tiles - row;
      // Each tile brings in its share of the next panel: all of it during one would be more than
      // memory gives in that time.
      const Word* next = after + panel * t / tiles;
      // What the caller reads next comes first: it is little.
      if (fetch < fetch_end) {
        next = fetch;
        fetch += block.k * fetched;
      }
      fetch_rows(block, row, rows, col);
      const TileRows at = rows_of_tile(block.a, blocks_apart, row, rows, block.rows);
      const bool half = cols == kLanes;
      if (straight != nullptr && (half || cols == kCols) && rows > kTileRows - kStraightHeights) {
        straight[half][kTileRows - rows](at, b, block.k, next, fetched, block, row, col);
        continue;
      }
      kTiles<Dot>[rows - 1](at, b, panel, block.k, next, fetched, out);
      settle<Dot>(out, rows, 1, at.first + kGemmBlockWords, b + block.k * kCols, panel);
      finish(block, out, kCols, row, rows, col, cols);
    }
  }
}

// to[i * kCols + j] = scale * B(first + i, col + j) for j < count, 0 for the others up to kCols.
HR_INLINE void copy_columns(Matrix b, int64_t col, int64_t count, int64_t first, int64_t n,
                            float scale, float* to) {
  // Matrix's members are inline functions that other ISAs' files may share: none is called here.
  if (b.transposed) {
    // Column by column, so that reads run along memory; what is written stays in the cache.
    const float* from = b.data + col * b.stride + first;
    for (int64_t j = 0; j < kCols; ++j, from += b.stride) {
      for (int64_t i = 0; i < n; ++i) to[i * kCols + j] = j < count ? from[i] * scale : 0.0f;
    }
    return;
  }
  const Vf factor = splat(scale);
  const float* from = b.data + first * b.stride + col;
  for (int64_t i = 0; i < n; ++i, from += b.stride, to += kCols) {
    for (int64_t j = 0; j < kCols; j += kLanes) {
      const int64_t left = count - j;
      Vf x = left >= kLanes ? load(from + j) : left > 0 ? load(from + j, left) : splat(0.0f);
      store(to + j, x * factor);
    }
  }
}

// Calls put(row, first element, count, where) for every row's part of every packed block.
template <class Put>
HR_INLINE void each_packed_row(int64_t rows, int64_t k, int64_t k_per_word, Word* packed, Put put) {
  const int64_t block = kGemmBlockWords * k_per_word;
  for (int64_t begin = 0; begin < k; begin += block) {
    const int64_t count = k - begin < block ? k - begin : block;
    for (int64_t r = 0; r < rows; ++r, packed += kGemmRowStride) put(r, begin, count, packed);
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
