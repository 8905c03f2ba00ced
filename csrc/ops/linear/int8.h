// Operands of 8-bit integers with a scale per row of A and per column of B: see gemm.h.
//
// A kind of word says how integers lie in it (`put_rows`, `word`), and is the *Dot class of tile.h.
#pragma once

#include "ops/linear/tile.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr float kInt8Max = 127.0f;

// The step between two integers, and what a value is multiplied by to be counted in steps.
struct Scale {
  float step;
  float inverse;
};

// For values of which `top` is the greatest magnitude. `nan` is NaN where one of them is not
// finite: then so is everything computed from them. Else it is 0.
HR_INLINE Scale scale_of(float top, float nan) {
  constexpr float kTiny = 1e-30f;  // all of them are 0, to any accuracy int8 can give
  if (top < kTiny) return {nan, 0.0f};
  return {top / kInt8Max + nan, kInt8Max / top};
}

HR_INLINE Vf get(const float* from) {
  return load(from);
}
HR_INLINE Vf get(const float* from, int64_t n) {
  return load(from, n);
}
HR_INLINE Vf get(const uint16_t* from) {
  return load_bf16(from);
}
HR_INLINE Vf get(const uint16_t* from, int64_t n) {
  return load_bf16(from, n);
}

template <class T>
HR_INLINE Scale row_scale(const T* row, int64_t k) {
  Vf top = splat(0.0f);
  Vf nan = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vf x = get(row + i);
    top = max(abs(x), top);
    nan = fma(x, splat(0.0f), nan);
  }
  if (i < k) {
    Vf x = get(row + i, k - i);
    top = max(abs(x), top);
    nan = fma(x, splat(0.0f), nan);
  }
  return scale_of(max_lane(top), sum(nan));
}

// Packs rows of T; Kind::put_rows writes kLanes integers from the i-th on.
template <class Kind, class T>
HR_INLINE void pack_quantized(const T* a, int64_t stride, int64_t rows, int64_t k, Word* packed) {
  for (int64_t r = 0; r < rows; ++r) {
    const Scale scale = row_scale(a + r * stride, k);
    *reinterpret_cast<float*>(packed + r * kGemmRowStride + kGemmBlockWords) = scale.step;
    const Vf inverse = splat(scale.inverse);
    for (int64_t begin = 0, block = 0; begin < k;
         begin += kGemmBlockWords * Kind::kPerWord, ++block) {
      const T* from = a + r * stride + begin;
      const int64_t full = kGemmBlockWords * Kind::kPerWord;
      const int64_t count = k - begin < full ? k - begin : full;
      Word* to = packed + (block * rows + r) * kGemmRowStride;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) Kind::put(to, i, to_int(get(from + i) * inverse));
      // The lanes beyond are 0, and a block has room for them.
      if (i < count) Kind::put(to, i, to_int(get(from + i, count - i) * inverse));
    }
  }
}

// A must not be transposed.
template <class Kind>
void pack_int8_rows(Matrix a, int64_t rows, int64_t k, Word* packed) {
  pack_quantized<Kind>(a.data, a.stride, rows, k, packed);
}
template <class Kind>
void pack_int8_bf16_rows(const uint16_t* a, int64_t stride, int64_t rows, int64_t k, Word* packed) {
  pack_quantized<Kind>(a, stride, rows, k, packed);
}

// Behind a panel's words: the columns' steps, and what must be taken off their sums.
template <class Kind>
void pack_int8_panel(Matrix b, int64_t col, int64_t count, int64_t k, float scale, Word* packed) {
  constexpr int64_t kChunk = 64;  // elements of k that are held as floats at a time
  constexpr int64_t kPerWord = Kind::kPerWord;
  static_assert(kChunk % kPerWord == 0);
  float chunk[kChunk * kCols];
  float top[kCols] = {};
  float nan[kCols] = {};
  float inverse[kCols];
  int32_t sums[kCols] = {};
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t n = k - begin < kChunk ? k - begin : kChunk;
    copy_columns(b, col, count, begin, n, scale, chunk);
    for (int64_t i = 0; i < n * kCols; i += kLanes) {
      float* t = top + i % kCols;
      float* z = nan + i % kCols;
      store(t, max(abs(load(chunk + i)), load(t)));
      store(z, fma(load(chunk + i), splat(0.0f), load(z)));
    }
  }
  Word* behind = packed + (k + kPerWord - 1) / kPerWord * kCols;
  for (int64_t j = 0; j < kCols; ++j) {
    Scale s = scale_of(top[j], nan[j]);
    reinterpret_cast<float*>(behind)[j] = s.step;
    inverse[j] = s.inverse;
  }
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t n = k - begin < kChunk ? k - begin : kChunk;
    copy_columns(b, col, count, begin, n, scale, chunk);
    for (int64_t i = n * kCols; i < (n + kPerWord - 1) / kPerWord * kPerWord * kCols; ++i)
      chunk[i] = 0.0f;
    for (int64_t i = 0; i < n; i += kPerWord) {
      for (int64_t j = 0; j < kCols; j += kLanes, packed += kLanes) {
        Vi q[kPerWord];
        Vi total = load(sums + j);
        for (int64_t p = 0; p < kPerWord; ++p) {
          q[p] = to_int(load(chunk + (i + p) * kCols + j) * load(inverse + j));
          total = total + q[p];
        }
        store(sums + j, total);
        store(reinterpret_cast<int32_t*>(packed), Kind::word(q));
      }
    }
  }
  if constexpr (Kind::kPanelExtra > kCols) {
    auto* offsets = reinterpret_cast<int32_t*>(behind + kCols);
    for (int64_t j = 0; j < kCols; ++j) offsets[j] = sums[j] * Kind::kOffset;
  }
}

template <class Kind>
void pack_int8_panels(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  const int64_t size = (k + Kind::kPerWord - 1) / Kind::kPerWord * kCols + Kind::kPanelExtra;
  for (int64_t col = 0; col < cols; col += kCols, packed += size) {
    pack_int8_panel<Kind>(b, col, cols - col < kCols ? cols - col : kCols, k, scale, packed);
  }
}

// sum * column's step * row's step, in this order in every kind: the bits agree.
HR_INLINE Vf int8_result(Vi sum, const Word* row, const Word* column) {
  return to_float(sum) * load(reinterpret_cast<const float*>(column)) *
         splat(*reinterpret_cast<const float*>(row));
}

// Two 16-bit integers, which every ISA can multiply and add.
struct Pairs {
  using Sum = Vi;
  using Factor = Vi;
  static constexpr int64_t kPerWord = 2;
  static constexpr int64_t kPanelExtra = kCols;
  static constexpr int32_t kOffset = 0;
  HR_INLINE Sum zero() { return splat(int32_t{0}); }
  HR_INLINE Factor broadcast(const Word* a) { return splat(static_cast<int32_t>(*a)); }
  HR_INLINE Factor load(const Word* b) {
    return HEADRACE_ISA_NS::load(reinterpret_cast<const int32_t*>(b));
  }
  HR_INLINE Sum dot(Factor a, Factor b, Sum sum) { return sum + multiply_add(a, b); }
  HR_INLINE Vi multiply_add(Vi a, Vi b) {
#if defined(__AVX512BW__)
    return {_mm512_madd_epi16(a.v, b.v)};
#elif defined(__AVX2__)
    return {_mm256_madd_epi16(a.v, b.v)};
#elif defined(__SSE2__)
    return {__builtin_bit_cast(
        RawI, _mm_madd_epi16(__builtin_bit_cast(__m128i, a.v), __builtin_bit_cast(__m128i, b.v)))};
#else
    RawI high = shift_right<16>(a).v * shift_right<16>(b).v;
    RawI low = shift_right<16>(shift_left<16>(a)).v * shift_right<16>(shift_left<16>(b)).v;
    return {high + low};
#endif
  }
  HR_INLINE Vf to_floats(Vi sum, const Word* row, const Word* column) {
    return int8_result(sum, row, column);
  }

  HR_INLINE void put(Word* row, int64_t i, Vi q) {
    auto* to = reinterpret_cast<int16_t*>(row) + i;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(q.v));
#else
    int32_t lanes[kLanes];
    store(lanes, q);
    for (int64_t j = 0; j < kLanes; ++j) to[j] = static_cast<int16_t>(lanes[j]);
#endif
  }
  HR_INLINE Vi word(const Vi* q) { return shift_left<16>(q[1]) | (q[0] & splat(int32_t{0xffff})); }
};

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
