// bfloat16, the upper half of a float: rounding to it (nearest, ties to even), loading and storing.
#pragma once

#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {

// The bits of the nearest bfloat16 in the upper half of each lane, 0 below. NaN stays NaN.
HR_INLINE Vi bf16_bits(Vf x) {
  Vi bits = as_int(x);
  Vi odd = shift_right<16>(bits) & splat(int32_t{1});
  Vi rounded = bits + splat(int32_t{0x7fff}) + odd;
  Vi kept = select(is_nan(x), bits | splat(int32_t{0x00400000}), rounded);
  return kept & splat(static_cast<int32_t>(0xffff0000u));
}
HR_INLINE Vf round_to_bf16(Vf x) {
  return as_float(bf16_bits(x));
}

HR_INLINE Vf load_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float(Vi{_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)});
#elif defined(__AVX2__)
  __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return as_float(Vi{_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)});
#elif defined(__aarch64__)
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))};
#else
  int32_t lanes[Vf::kLanes];
  for (int i = 0; i < Vf::kLanes; ++i) lanes[i] = static_cast<int32_t>(uint32_t{p[i]} << 16);
  return as_float(load(lanes));
#endif
}
HR_INLINE Vf load_bf16(const uint16_t* p, int64_t n) {
  uint16_t lanes[Vf::kLanes] = {};
  for (int64_t i = 0; i < n && i < Vf::kLanes; ++i) lanes[i] = p[i];
  return load_bf16(lanes);
}

HR_INLINE void store_bf16(uint16_t* p, Vf x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(x.v)));
#elif defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(x).v, 16)));
#elif defined(__AVX2__)
  __m256i words = _mm256_srli_epi32(bf16_bits(x).v, 16);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32(x.v)));
#elif defined(__aarch64__)
  vst1_u16(p, vshrn_n_u32(vreinterpretq_u32_s32(bf16_bits(x).v), 16));
#else
  int32_t lanes[Vf::kLanes];
  store(lanes, bf16_bits(x));
  for (int i = 0; i < Vf::kLanes; ++i) {
    p[i] = static_cast<uint16_t>(static_cast<uint32_t>(lanes[i]) >> 16);
  }
#endif
}
HR_INLINE void store_bf16(uint16_t* p, Vf x, int64_t n) {
  uint16_t lanes[Vf::kLanes];
  store_bf16(lanes, x);
  for (int64_t i = 0; i < n && i < Vf::kLanes; ++i) p[i] = lanes[i];
}

}  // namespace headrace::HEADRACE_ISA_NS
