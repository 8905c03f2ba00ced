// The two products of attention: packing their operands, and the register tiles. A *Words class
// says what a packed 32-bit word holds, which are neighbours along the axis that is summed:
//
//   kPerWord
//   row(from, n)       a vector of words from up to kLanes * kPerWord neighbours; zeros beyond n
//   word(elements)     kPerWord vectors of floats as one of words
//   add(words, Vf sum) the sum and a vector of words' elements
//   broadcast(word*)   a factor of all lanes
//   load(words*)
//   dot(broadcast or load, load, Vf sum)
#pragma once

#include "ops/attention/attention.h"
#include "ops/simd/bf16.h"
#include "ops/simd/math.h"
#include "ops/simd/transpose.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
constexpr int64_t kMaxVectors = 2;                // of queries in a tile, and of columns of V
constexpr int64_t kWidth = kMaxVectors * kLanes;  // queries that are computed together
constexpr int64_t kQueryBlock = 128;
constexpr int64_t kKeyBlock = 128;  // its scores fill half an L1 cache
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kTileRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int64_t kTileRows = 6;  // 12 accumulators of 16 registers
#endif

constexpr int64_t whole_vectors(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

HR_INLINE Vf get(const float* from, int64_t n) {
  return n < kLanes ? load(from, n) : load(from);
}
HR_INLINE Vf get(const uint16_t* from, int64_t n) {
  return n < kLanes ? load_bf16(from, n) : load_bf16(from);
}

// body(rows, stride) with the operand's rows as what they are.
template <class Body>
HR_INLINE void with_rows(const AttentionOperand& x, Body body) {
  if (x.bf16) return body(static_cast<const uint16_t*>(x.rows), x.stride);
  body(static_cast<const float*>(x.rows), x.stride);
}

// to[c * to_stride + r] = word c of row r, with 0 for r from `rows` up to a full vector.
template <class Words, class T>
HR_INLINE void pack_transposed(const T* from, int64_t from_stride, int64_t rows, int64_t columns,
                               float* to, int64_t to_stride) {
  constexpr int64_t kStep = kLanes * Words::kPerWord;
  for (int64_t c = 0; c < columns; c += kStep) {
    Vf block[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      block[r] = r < rows ? Words::row(from + r * from_stride + c, columns - c) : splat(0.0f);
    }
    transpose(block);
    for (int64_t i = 0; i < kLanes && i * Words::kPerWord < columns - c; ++i, to += to_stride) {
      store(to, block[i]);
    }
  }
}

// Words of a row of K, and the distance of packed rows.
template <class Words>
constexpr int64_t key_words(int64_t head_dim) {
  return (head_dim + Words::kPerWord - 1) / Words::kPerWord;
}
template <class Words>
constexpr int64_t key_stride(int64_t head_dim) {
  return whole_vectors(key_words<Words>(head_dim));
}

// Keys lie apart by a whole token's queries, keys and values, so that a block of them is in the way
// of itself in the caches: it is packed once for all queries of a block.
template <class Words>
void pack_keys(const AttentionOperand& k, int64_t first, int64_t n, int64_t head_dim, float* to) {
  constexpr int64_t kStep = kLanes * Words::kPerWord;
  with_rows(k, [=](const auto* from, int64_t stride) __attribute__((always_inline)) {
    float* at = to;
    from += first * stride;
    for (int64_t r = 0; r < n; ++r, from += stride) {
      for (int64_t d = 0; d < head_dim; d += kStep, at += kLanes) {
        store(at, Words::row(from + d, head_dim - d));
      }
    }
  });
}

// to[i * whole_vectors(value_dim) + c] = the word of column c of the i-th kPerWord values.
template <class Words>
void pack_values(const AttentionOperand& v, int64_t first, int64_t n, int64_t value_dim,
                 float* to) {
  with_rows(v, [=](const auto* from, int64_t stride) __attribute__((always_inline)) {
    float* at = to;
    from += first * stride;
    for (int64_t r = 0; r < n; r += Words::kPerWord, from += Words::kPerWord * stride) {
      for (int64_t c = 0; c < value_dim; c += kLanes, at += kLanes) {
        Vf elements[Words::kPerWord];
        for (int64_t i = 0; i < Words::kPerWord; ++i) {
          elements[i] = r + i < n ? get(from + i * stride + c, value_dim - c) : splat(0.0f);
        }
        store(at, Words::word(elements));
      }
    }
  });
}

// kRows keys against kVectors vectors of queries. Raises `top` to the scores' maximum.
template <class Words, int kRows, int kVectors>
void score_tile(const float* qt, const float* k, int64_t k_stride, int64_t words, float* scores,
                Vf* top) {
  Vf acc[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) acc[r][v] = splat(0.0f);
  }
  for (int64_t d = 0; d < words; ++d) {
    decltype(Words::load(qt)) q[kVectors];
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) q[v] = Words::load(qt + (d * kVectors + v) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      auto key = Words::broadcast(k + r * k_stride + d);
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Words::dot(key, q[v], acc[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      store(scores + (r * kVectors + v) * kLanes, acc[r][v]);
      top[v] = max(top[v], acc[r][v]);
    }
  }
}

// kRows queries' sums over `words` words of probabilities and values: sums = sums * before + P V,
// where a null `before` stands for 0.
template <class Words, int kRows, int kVectors>
void value_tile(const float* p, int64_t p_stride, const float* v, int64_t v_stride, int64_t words,
                const float* before, float* sums) {
  Vf acc[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kVectors; ++c) {
      acc[r][c] = splat(0.0f);
      if (before != nullptr) {
        acc[r][c] = load(sums + r * v_stride + c * kLanes) * splat(before[r]);
      }
    }
  }
  for (int64_t k = 0; k < words; ++k) {
    decltype(Words::load(v)) value[kVectors];
#pragma GCC unroll 12
    for (int c = 0; c < kVectors; ++c) value[c] = Words::load(v + k * v_stride + c * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      auto probability = Words::broadcast(p + k * p_stride + r);
#pragma GCC unroll 12
      for (int c = 0; c < kVectors; ++c) {
        acc[r][c] = Words::dot(probability, value[c], acc[r][c]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kVectors; ++c) store(sums + r * v_stride + c * kLanes, acc[r][c]);
  }
}

using ScoreTile = void (*)(const float*, const float*, int64_t, int64_t, float*, Vf*);
using ValueTile = void (*)(const float*, int64_t, const float*, int64_t, int64_t, const float*,
                           float*);

// Tiles by their vectors - 1 and rows - 1.
#if defined(__AVX512F__) || defined(__aarch64__)
#define HR_TILES(tile, n)                                                        \
  {tile<Words, 1, n>, tile<Words, 2, n>,  tile<Words, 3, n>,  tile<Words, 4, n>, \
   tile<Words, 5, n>, tile<Words, 6, n>,  tile<Words, 7, n>,  tile<Words, 8, n>, \
   tile<Words, 9, n>, tile<Words, 10, n>, tile<Words, 11, n>, tile<Words, 12, n>}
#else
#define HR_TILES(tile, n)                                   \
  {tile<Words, 1, n>, tile<Words, 2, n>, tile<Words, 3, n>, \
   tile<Words, 4, n>, tile<Words, 5, n>, tile<Words, 6, n>}
#endif
template <class Words>
constexpr ScoreTile kScoreTiles[kMaxVectors][kTileRows] = {HR_TILES(score_tile, 1),
                                                           HR_TILES(score_tile, 2)};
template <class Words>
constexpr ValueTile kValueTiles[kMaxVectors][kTileRows] = {HR_TILES(value_tile, 1),
                                                           HR_TILES(value_tile, 2)};
#undef HR_TILES

// Calls body(first row, rows) for tiles of nearly equal height.
template <class Body>
HR_INLINE void each_tile(int64_t rows, Body body) {
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    int64_t begin = rows * t / tiles;
    body(begin, rows * (t + 1) / tiles - begin);
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
