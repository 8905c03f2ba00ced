// Vectors of 16- and 8-bit elements, widened to 32-bit lanes when loaded and narrowed when stored.
#pragma once

#include "ops/simd/bf16.h"

namespace headrace::HEADRACE_ISA_NS {

// How elements of one dtype come into and leave a vector. `Element` is how they lie in memory.
// store() of the integers takes lanes that already lie in the dtype's range.
struct F32 {
  using Element = float;
  HR_INLINE Vf load(const float* p) { return HEADRACE_ISA_NS::load(p); }
  HR_INLINE void store(float* p, Vf a) { HEADRACE_ISA_NS::store(p, a); }
};
struct BF16 {
  using Element = uint16_t;
  HR_INLINE Vf load(const uint16_t* p) { return load_bf16(p); }
  HR_INLINE void store(uint16_t* p, Vf a) { store_bf16(p, a); }
};
// F16C comes with AVX2; on x86's baseline the scalar code converts.
#if defined(__AVX2__)
#define HEADRACE_HAS_F16 1
struct F16 {
  using Element = uint16_t;
  static constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  HR_INLINE Vf load(const uint16_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
#else
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#endif
  }
  HR_INLINE void store(uint16_t* p, Vf a) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, kNearest));
#else
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, kNearest));
#endif
  }
};
#elif defined(__aarch64__)
#define HEADRACE_HAS_F16 1
struct F16 {
  using Element = uint16_t;
  HR_INLINE Vf load(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
  HR_INLINE void store(uint16_t* p, Vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
};
#endif

#if defined(__aarch64__)
// Four bytes, and the low bytes of four lanes.
HR_INLINE uint32x2_t load_bytes(const void* p) {
  uint32_t bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return vdup_n_u32(bytes);
}
HR_INLINE void store_bytes(void* p, Vi a) {
  int16x4_t words = vmovn_s32(a.v);
  uint32x2_t bytes = vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words)));
  uint32_t low = vget_lane_u32(bytes, 0);
  __builtin_memcpy(p, &low, sizeof(low));
}
#endif

struct U8 {
  using Element = uint8_t;
  static constexpr int32_t kLowest = 0;
  static constexpr int32_t kHighest = 255;
  HR_INLINE Vi load(const uint8_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__AVX2__)
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__aarch64__)
    uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(load_bytes(p)));
    return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)))};
#else
    return {RawI{p[0], p[1], p[2], p[3]}};
#endif
  }
  HR_INLINE void store(uint8_t* p, Vi a) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
#elif defined(__AVX2__)
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#elif defined(__aarch64__)
    store_bytes(p, a);
#else
    for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(a.v[i]);
#endif
  }
};
struct I8 {
  using Element = int8_t;
  static constexpr int32_t kLowest = -128;
  static constexpr int32_t kHighest = 127;
  HR_INLINE Vi load(const int8_t* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__AVX2__)
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
#elif defined(__aarch64__)
    return {vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(load_bytes(p)))))};
#else
    return {RawI{p[0], p[1], p[2], p[3]}};
#endif
  }
  HR_INLINE void store(int8_t* p, Vi a) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
#elif defined(__AVX2__)
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
#elif defined(__aarch64__)
    store_bytes(p, a);
#else
    for (int i = 0; i < 4; ++i) p[i] = static_cast<int8_t>(a.v[i]);
#endif
  }
};

// y[i] = f(x[i]) from elements of From to elements of To. The rest that fills no vector is computed
// as one, in a buffer.
template <class From, class To, class F>
HR_INLINE void convert(const typename From::Element* x, typename To::Element* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + Vf::kLanes <= n; i += Vf::kLanes) To::store(y + i, f(From::load(x + i)));
  if (i == n) return;
  typename From::Element in[Vf::kLanes] = {};
  typename To::Element out[Vf::kLanes];
  for (int64_t j = 0; j < n - i; ++j) in[j] = x[i + j];
  To::store(out, f(From::load(in)));
  for (int64_t j = 0; j < n - i; ++j) y[i + j] = out[j];
}

}  // namespace headrace::HEADRACE_ISA_NS
