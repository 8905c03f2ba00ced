// vec.h for AVX2 with FMA: 8 lanes.
#pragma once

#include <immintrin.h>

namespace headrace::HEADRACE_ISA_NS {

struct Vi {
  static constexpr int kLanes = 8;
  __m256i v;
};
struct Vm {
  __m256 m;
};
struct Vf {
  static constexpr int kLanes = 8;
  __m256 v;
};
HR_INLINE __m256i head(int64_t n) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= 8 ? 8 : static_cast<int32_t>(n)), lane);
}
HR_INLINE Vf splat(float x) {
  return {_mm256_set1_ps(x)};
}
HR_INLINE Vi splat(int32_t x) {
  return {_mm256_set1_epi32(x)};
}
HR_INLINE Vf load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
HR_INLINE Vf load(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, head(n))};
}
HR_INLINE void store(float* p, Vf a) {
  _mm256_storeu_ps(p, a.v);
}
HR_INLINE void store(float* p, Vf a, int64_t n) {
  _mm256_maskstore_ps(p, head(n), a.v);
}
HR_INLINE void stream(float* p, Vf a) {
  _mm256_stream_ps(p, a.v);
}
HR_INLINE Vi load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
HR_INLINE Vi load(const int32_t* p, int64_t n) {
  return {_mm256_maskload_epi32(p, head(n))};
}
HR_INLINE void store(int32_t* p, Vi a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
HR_INLINE void store(int32_t* p, Vi a, int64_t n) {
  _mm256_maskstore_epi32(p, head(n), a.v);
}
HR_INLINE Vf operator+(Vf a, Vf b) {
  return {_mm256_add_ps(a.v, b.v)};
}
HR_INLINE Vf operator-(Vf a, Vf b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
HR_INLINE Vf operator*(Vf a, Vf b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
HR_INLINE Vf operator/(Vf a, Vf b) {
  return {_mm256_div_ps(a.v, b.v)};
}
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return {_mm256_fnmadd_ps(a.v, b.v, c.v)};
}
HR_INLINE Vf max(Vf a, Vf b) {
  return {_mm256_max_ps(a.v, b.v)};
}
HR_INLINE Vf min(Vf a, Vf b) {
  return {_mm256_min_ps(a.v, b.v)};
}
HR_INLINE Vf sqrt(Vf a) {
  return {_mm256_sqrt_ps(a.v)};
}
HR_INLINE Vf round(Vf a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
HR_INLINE Vm operator<(Vf a, Vf b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}
HR_INLINE Vm operator<=(Vf a, Vf b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}
HR_INLINE Vm operator==(Vf a, Vf b) {
  return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}
HR_INLINE Vm operator==(Vi a, Vi b) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))};
}
HR_INLINE Vm is_nan(Vf a) {
  return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)};
}
HR_INLINE Vm operator&(Vm a, Vm b) {
  return {_mm256_and_ps(a.m, b.m)};
}
HR_INLINE Vm operator|(Vm a, Vm b) {
  return {_mm256_or_ps(a.m, b.m)};
}
HR_INLINE Vf select(Vm m, Vf a, Vf b) {
  return {_mm256_blendv_ps(b.v, a.v, m.m)};
}
HR_INLINE Vi select(Vm m, Vi a, Vi b) {
  return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.m))};
}
HR_INLINE bool any(Vm m) {
  return _mm256_movemask_ps(m.m) != 0;
}
HR_INLINE Vm first_lanes(int64_t n) {
  return {_mm256_castsi256_ps(head(n))};
}
HR_INLINE Vi operator+(Vi a, Vi b) {
  return {_mm256_add_epi32(a.v, b.v)};
}
HR_INLINE Vi operator-(Vi a, Vi b) {
  return {_mm256_sub_epi32(a.v, b.v)};
}
HR_INLINE Vi operator&(Vi a, Vi b) {
  return {_mm256_and_si256(a.v, b.v)};
}
HR_INLINE Vi operator|(Vi a, Vi b) {
  return {_mm256_or_si256(a.v, b.v)};
}
HR_INLINE Vi operator^(Vi a, Vi b) {
  return {_mm256_xor_si256(a.v, b.v)};
}
template <int kBits>
HR_INLINE Vi shift_left(Vi a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
HR_INLINE Vi shift_right(Vi a) {
  return {_mm256_srai_epi32(a.v, kBits)};
}
HR_INLINE Vf as_float(Vi a) {
  return {_mm256_castsi256_ps(a.v)};
}
HR_INLINE Vi as_int(Vf a) {
  return {_mm256_castps_si256(a.v)};
}
HR_INLINE Vi to_int(Vf a) {
  return {_mm256_cvtps_epi32(a.v)};
}
HR_INLINE Vf to_float(Vi a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
HR_INLINE Vf gather(const float* base, Vi index) {
  return {_mm256_i32gather_ps(base, index.v, 4)};
}
HR_INLINE Vi gather(const int32_t* base, Vi index) {
  return {_mm256_i32gather_epi32(base, index.v, 4)};
}

}  // namespace headrace::HEADRACE_ISA_NS
