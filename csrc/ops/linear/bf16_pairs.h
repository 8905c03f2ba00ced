// Packing operands into words of two bfloat16, for the ISAs that multiply them: see gemm.h.
#pragma once

#include "ops/linear/tile.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kBf16PerWord = 2;

HR_INLINE void store_vectors(uint16_t* to, Vf low, Vf high) {
#if defined(__AVX512BF16__)
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
#else
  store_bf16(to, low);
  store_bf16(to + kLanes, high);
#endif
}

// A must not be transposed.
void pack_bf16_pairs(Matrix a, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, kBf16PerWord, words,
                  [&](int64_t r, int64_t begin, int64_t count, Word* to) {
                    const float* from = a.data + r * a.stride + begin;
                    auto* packed = reinterpret_cast<uint16_t*>(to);
                    int64_t i = 0;
                    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
                      store_vectors(packed + i, load(from + i), load(from + i + kLanes));
                    }
                    // Zeros fill the last word; a block has room for them.
                    for (; i < count; i += kLanes)
                      store_bf16(packed + i, load(from + i, count - i));
                  });
}

void copy_bf16_pairs(const uint16_t* a, int64_t stride, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, kBf16PerWord, words,
                  [&](int64_t r, int64_t begin, int64_t count, Word* to) {
                    const uint16_t* from = a + r * stride + begin;
                    auto* packed = reinterpret_cast<uint16_t*>(to);
                    int64_t i = 0;
                    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
                      __builtin_memcpy(packed + i, from + i, 2 * kLanes * sizeof(uint16_t));
                    }
                    for (; i < count; ++i) packed[i] = from[i];
                    if (count % 2 != 0) packed[count] = 0;
                  });
}

void pack_bf16_panels(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  float rows[2 * kCols];
  for (int64_t col = 0; col < cols; col += kCols) {
    const int64_t count = cols - col < kCols ? cols - col : kCols;
    for (int64_t i = 0; i < k; i += kBf16PerWord, packed += kCols) {
      for (int64_t j = kCols; j < 2 * kCols; ++j) rows[j] = 0.0f;
      copy_columns(b, col, count, i, k - i < kBf16PerWord ? k - i : kBf16PerWord, scale, rows);
      for (int64_t j = 0; j < kCols; j += kLanes) {
        Vi even = shift_right<16>(bf16_bits(load(rows + j))) & splat(int32_t{0xffff});
        Vi odd = bf16_bits(load(rows + kCols + j));
        store(reinterpret_cast<int32_t*>(packed + j), even | odd);
      }
    }
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
