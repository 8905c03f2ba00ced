// Operands of 8-bit integers, with a step and a zero point per row of A and a step per column of B:
// see gemm.h.
//
// A kind of word says how integers lie in it (`put`, `word`), and is the *Dot class of tile.h.
#pragma once

#include "ops/linear/tile.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace headrace::HEADRACE_ISA_NS {
namespace {

// The step between two integers, and what a value is multiplied by to be counted in steps.
struct Scale {
  float step;
  float inverse;
};

// For values that span `range`, to be held by `steps` steps. `nan` is NaN where one of the values
// is not finite: then so is everything computed from them. Else it is 0.
HR_INLINE Scale scale_of(float range, float steps, float nan) {
  constexpr float kTiny = 1e-30f;  // all of them are 0, to any accuracy int8 can give
  if (range < kTiny) return {nan, 0.0f};
  return {range / steps + nan, steps / range};
}

// What the kernels keep behind the words of a packed row.
struct RowScale {
  float step;
  int32_t zero;  // the integer that stands for 0
};
static_assert(sizeof(RowScale) <= (kGemmRowStride - kGemmBlockWords) * sizeof(Word));

struct RowQuantizer {
  Vf inverse;
  Vf zero;
  // 0 .. 255, nearest. Multiplied and added in two roundings, as every ISA can.
  HR_INLINE Vi apply(const RowQuantizer& self, Vf x) {
    return to_int(min(splat(255.0f), max(splat(0.0f), x * self.inverse + self.zero)));
  }
};

template <class T>
HR_INLINE RowQuantizer quantizer_of(const T* row, int64_t k, RowScale* scale) {
  // The range holds 0, so that 0 is exact.
  Vf low = splat(0.0f);
  Vf high = splat(0.0f);
  Vf nan = splat(0.0f);
  auto look = [&](Vf x) {
    low = min(x, low);
    high = max(x, high);
    nan = fma(x, splat(0.0f), nan);
  };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) look(get(row + i));
  if (i < k) look(get(row + i, k - i));
  const float bottom = -max_lane(neg(low));
  const Scale s = scale_of(max_lane(high) - bottom, 255.0f, sum(nan));
  const Vf zero = round(splat(-bottom * s.inverse));
  float zeros[kLanes];
  store(zeros, zero);
  // A row that is not finite has no zero either; its step makes all of it NaN.
  *scale = {s.step, zeros[0] == zeros[0] ? static_cast<int32_t>(zeros[0]) : 0};
  return {splat(s.inverse), zero};
}

// Packs rows of T; Kind::put writes kLanes integers from the i-th on.
template <class Kind, class T>
HR_INLINE void pack_quantized(const T* a, int64_t stride, int64_t rows, int64_t k, Word* packed) {
  const int64_t full = kGemmBlockWords * Kind::kPerWord;
  for (int64_t r = 0; r < rows; ++r) {
    auto* scale = reinterpret_cast<RowScale*>(packed + r * kGemmRowStride + kGemmBlockWords);
    const RowQuantizer quantizer = quantizer_of(a + r * stride, k, scale);
    for (int64_t begin = 0, block = 0; begin < k; begin += full, ++block) {
      const T* from = a + r * stride + begin;
      const int64_t count = k - begin < full ? k - begin : full;
      Word* to = packed + (block * rows + r) * kGemmRowStride;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        Kind::put(to, i, RowQuantizer::apply(quantizer, get(from + i)), scale->zero);
      }
      // The lanes beyond meet zeros of B, and a block has room for them.
      if (i < count) {
        Kind::put(to, i, RowQuantizer::apply(quantizer, get(from + i, count - i)), scale->zero);
      }
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

// Behind a panel's words: the columns' steps and, where a kind has room for them, their sums. Where
// the floats are `kExact`, they are integers already, of step 1.
template <class Kind, bool kExact>
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
    const Scale s = kExact ? Scale{1.0f, 1.0f} : scale_of(top[j], 127.0f, nan[j]);
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
    for (int64_t j = 0; j < kCols; j += kLanes) {
      store(reinterpret_cast<int32_t*>(behind + kCols + j), load(sums + j));
    }
  }
}

template <class Kind, bool kExact = false>
void pack_int8_panels(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  const int64_t size = (k + Kind::kPerWord - 1) / Kind::kPerWord * kCols + Kind::kPanelExtra;
  for (int64_t col = 0; col < cols; col += kCols, packed += size) {
    pack_int8_panel<Kind, kExact>(b, col, cols - col < kCols ? cols - col : kCols, k, scale,
                                  packed);
  }
}

// sum * column's step * row's step, in this order in every kind: the bits agree.
HR_INLINE Vf int8_result(Vi sum, const Word* row, const Word* column) {
  return to_float(sum) * load(reinterpret_cast<const float*>(column)) *
         splat(reinterpret_cast<const RowScale*>(row)->step);
}

// Two 16-bit integers, which every ISA can multiply and add. A's have their zero point taken off.
struct Pairs {
  using Sum = Vi;
  static constexpr int64_t kPerWord = 2;
  static constexpr int kRawFlip = -1;  // see static_int8.h
  static constexpr int64_t kPanelExtra = kCols;
  HR_INLINE Sum zero() { return splat(int32_t{0}); }
#if defined(__aarch64__)
  // The multiply-add takes one integer of A and four of B, which are taken apart here: the twelve
  // rows of a tile share the cost.
  struct Halves {
    int16x4_t even, odd;
  };
  HR_INLINE int16x4_t broadcast(const Word* a) { return vcreate_s16(*a); }
  HR_INLINE Halves load(const Word* b) {
    int32x4_t words = vld1q_s32(reinterpret_cast<const int32_t*>(b));
    return {vmovn_s32(words), vshrn_n_s32(words, 16)};
  }
  HR_INLINE Sum dot(int16x4_t a, Halves b, Sum sum) {
    return {vmlal_lane_s16(vmlal_lane_s16(sum.v, b.even, a, 0), b.odd, a, 1)};
  }
#else
  HR_INLINE Vi broadcast(const Word* a) { return splat(static_cast<int32_t>(*a)); }
  HR_INLINE Vi load(const Word* b) {
    return HEADRACE_ISA_NS::load(reinterpret_cast<const int32_t*>(b));
  }
  HR_INLINE Sum dot(Vi a, Vi b, Sum sum) { return sum + multiply_add(a, b); }
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
#endif
  HR_INLINE Vf to_floats(Vi sum, const Word* row, const Word* column) {
    return int8_result(sum, row, column);
  }

  HR_INLINE void put(Word* row, int64_t i, Vi q, int32_t zero) {
    q = q - splat(zero);
    auto* to = reinterpret_cast<int16_t*>(row) + i;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(q.v));
#elif defined(__aarch64__)
    vst1_s16(to, vmovn_s32(q.v));
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
