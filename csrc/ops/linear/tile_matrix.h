// The register-tiled product on instructions that multiply 2 x 2 blocks: two words of two rows of A
// by two words of two columns of B. It stands in for tile.h's tile. A is packed as for that; in a
// panel of B, words 2 i and 2 i + 1 of a column lie side by side, and so do a pair of columns.
//
// A *Matrix class is a *Dot class with this in place of broadcast, load and dot:
//
//   Block                        a vector of four sums: of (r, j), (r, j + 1), (r + 1, j), ...
//   no_sums()
//   multiply(rows, columns, Block)
#pragma once

#include "ops/linear/tile.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// Pairs of columns in a panel.
constexpr int kGroups = kCols / 2;

// Two words of one row of A and of the next; one word, if there is only one.
template <bool kTwoRows, bool kTwoWords>
HR_INLINE uint32x4_t row_pair(const Word* a) {
  auto row = [](const Word* from) { return kTwoWords ? vld1_u32(from) : vcreate_u32(*from); };
  return vcombine_u32(row(a), kTwoRows ? row(a + kGemmRowStride) : vdup_n_u32(0));
}

// Two words of two columns of B. The last word of an odd number lies as in any other panel.
template <bool kTwoWords>
HR_INLINE uint32x4_t column_pair(const Word* b, int group) {
  if constexpr (kTwoWords) return vld1q_u32(b + 4 * group);
  return vreinterpretq_u32_u64(vmovl_u32(vld1_u32(b + 2 * group)));
}

template <class Matrix, int kRows, int kPanels, bool kTwoWords>
HR_INLINE void matrix_step(const Word* a, const Word* b, int64_t panel,
                           typename Matrix::Block (&acc)[(kRows + 1) / 2][kGroups * kPanels]) {
  constexpr int kPairs = (kRows + 1) / 2;
  auto rows = [&](int p) {
    if (2 * p + 1 < kRows) return row_pair<true, kTwoWords>(a + 2 * p * kGemmRowStride);
    return row_pair<false, kTwoWords>(a + 2 * p * kGemmRowStride);
  };
  if constexpr (kPanels == 1) {
    uint32x4_t y[kGroups];
#pragma GCC unroll 4
    for (int j = 0; j < kGroups; ++j) y[j] = column_pair<kTwoWords>(b, j);
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      uint32x4_t x = rows(p);
#pragma GCC unroll 4
      for (int j = 0; j < kGroups; ++j) acc[p][j] = Matrix::multiply(x, y[j], acc[p][j]);
    }
  } else {
    uint32x4_t x[kPairs];
#pragma GCC unroll 2
    for (int p = 0; p < kPairs; ++p) x[p] = rows(p);
#pragma GCC unroll 16
    for (int j = 0; j < kGroups * kPanels; ++j) {
      uint32x4_t y = column_pair<kTwoWords>(b + j / kGroups * panel, j % kGroups);
#pragma GCC unroll 2
      for (int p = 0; p < kPairs; ++p) acc[p][j] = Matrix::multiply(x[p], y, acc[p][j]);
    }
  }
}

template <class Matrix, int kRows, int kPanels>
void matrix_tile(const TileRows& rows, const Word* b, int64_t panel, int64_t k, const Word* next,
                 int64_t fetched, float* out) {
  const Word* a = rows.first;
  constexpr int kPairs = (kRows + 1) / 2;
  typename Matrix::Block acc[kPairs][kGroups * kPanels];
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 16
    for (int j = 0; j < kGroups * kPanels; ++j) acc[p][j] = Matrix::no_sums();
  }
  for (int64_t begin = 0; begin < k; begin += kGemmBlockWords, a += rows.blocks_apart) {
    const int64_t count = k - begin < kGemmBlockWords ? k - begin : kGemmBlockWords;
    for (int64_t i = 0; i + 2 <= count; i += 2) {
      __builtin_prefetch(next, 0, 2);
      next += 2 * fetched;
      if constexpr (kRows >= 6) __builtin_prefetch(a + rows.ahead + i * kRows, 0, 2);
      matrix_step<Matrix, kRows, kPanels, true>(a + i, b, panel, acc);
      b += 2 * kCols;
    }
    // Blocks but the last have an even number of words.
    if (count % 2 != 0) matrix_step<Matrix, kRows, kPanels, false>(a + count - 1, b, panel, acc);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 8
    for (int j = 0; j < kGroups * kPanels; j += 2) {
      uint64x2_t left = Matrix::as_words(acc[p][j]);
      uint64x2_t right = Matrix::as_words(acc[p][j + 1]);
      float* to = out + (2 * p * kPanels * kCols) + 2 * j;
      vst1q_f32(to, vreinterpretq_f32_u64(vzip1q_u64(left, right)));
      if (2 * p + 1 < kRows) {
        vst1q_f32(to + kPanels * kCols, vreinterpretq_f32_u64(vzip2q_u64(left, right)));
      }
    }
  }
}

template <class Matrix, int kRows, int kPanels>
  requires SumsOfRowPairs<Matrix>
constexpr Tile kTile<Matrix, kRows, kPanels> = matrix_tile<Matrix, kRows, kPanels>;

// Brings the panels of `cols` columns from the order of tile.h to this one.
template <class Matrix>
HR_INLINE void pair_words(Word* packed, int64_t words, int64_t cols) {
  for (int64_t col = 0; col < cols; col += kCols) {
    for (int64_t i = 0; i + 2 <= words; i += 2) {
      Word* at = packed + i * kCols;
      uint32x4_t even[2] = {vld1q_u32(at), vld1q_u32(at + kLanes)};
      uint32x4_t odd[2] = {vld1q_u32(at + kCols), vld1q_u32(at + kCols + kLanes)};
      for (int j = 0; j < 2; ++j) {
        vst1q_u32(at + 2 * j * kLanes, vzip1q_u32(even[j], odd[j]));
        vst1q_u32(at + (2 * j + 1) * kLanes, vzip2q_u32(even[j], odd[j]));
      }
    }
    packed += words * kCols + Matrix::kPanelExtra;
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
