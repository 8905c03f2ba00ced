// Products of bfloat16 pairs: 32 multiply-adds an instruction, sums in float. The instruction takes
// subnormal numbers for 0.
#include "ops/linear/tile.h"

namespace headrace::avx512_bf16 {
namespace {

struct Bf16Dot {
  using Sum = Vf;
  using Factor = Vi;
  static constexpr int64_t kPanelExtra = 0;
  HR_INLINE Sum zero() { return splat(0.0f); }
  HR_INLINE Factor broadcast(const Word* a) { return splat(static_cast<int32_t>(*a)); }
  HR_INLINE Factor load(const Word* b) {
    return avx512_bf16::load(reinterpret_cast<const int32_t*>(b));
  }
  HR_INLINE Sum dot(Factor a, Factor b, Sum sum) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

constexpr int64_t kPerWord = 2;

void pack_rows(Matrix a, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, kPerWord, words, [&](int64_t r, int64_t begin, int64_t count, Word* to) {
    const float* from = a.data + r * a.stride + begin;
    auto* packed = reinterpret_cast<uint16_t*>(to);
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      __m512bh pair = _mm512_cvtne2ps_pbh(load(from + i + kLanes).v, load(from + i).v);
      _mm512_storeu_si512(packed + i, reinterpret_cast<__m512i>(pair));
    }
    // Zeros fill the last word; a block has room for them.
    for (; i < count; i += kLanes) store_bf16(packed + i, load(from + i, count - i));
  });
}

void pack_bf16_rows(const uint16_t* a, int64_t stride, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, kPerWord, words, [&](int64_t r, int64_t begin, int64_t count, Word* to) {
    const uint16_t* from = a + r * stride + begin;
    auto* packed = reinterpret_cast<uint16_t*>(to);
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      _mm512_storeu_si512(packed + i, _mm512_loadu_si512(from + i));
    }
    for (; i < count; ++i) packed[i] = from[i];
    if (count % 2 != 0) packed[count] = 0;
  });
}

void pack_panels(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  float rows[2 * kCols];
  for (int64_t col = 0; col < cols; col += kCols) {
    const int64_t count = cols - col < kCols ? cols - col : kCols;
    for (int64_t i = 0; i < k; i += kPerWord, packed += kCols) {
      for (int64_t j = kCols; j < 2 * kCols; ++j) rows[j] = 0.0f;
      copy_columns(b, col, count, i, k - i < kPerWord ? k - i : kPerWord, scale, rows);
      for (int64_t j = 0; j < kCols; j += kLanes) {
        Vi even = shift_right<16>(bf16_bits(load(rows + j))) & splat(int32_t{0xffff});
        Vi odd = bf16_bits(load(rows + kCols + j));
        store(reinterpret_cast<int32_t*>(packed + j), even | odd);
      }
    }
  }
}

}  // namespace

extern const GemmKernels gemm_bf16_kernels;
const GemmKernels gemm_bf16_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = kPerWord,
    .panel_extra = Bf16Dot::kPanelExtra,
    .pack_rows = pack_rows,
    .pack_bf16_rows = pack_bf16_rows,
    .pack_panels = pack_panels,
    .multiply = multiply<Bf16Dot>,
    .finish = finish_products,
};

}  // namespace headrace::avx512_bf16
