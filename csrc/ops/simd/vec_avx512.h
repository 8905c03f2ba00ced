// vec.h for AVX-512: 16 lanes.
#pragma once

#include <immintrin.h>

namespace headrace::HEADRACE_ISA_NS {

struct Vi {
  static constexpr int kLanes = 16;
  __m512i v;
};
struct Vm {
  __mmask16 m;
};
struct Vf {
  static constexpr int kLanes = 16;
  __m512 v;
};
HR_INLINE __mmask16 head(int64_t n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
}
HR_INLINE Vf splat(float x) {
  return {_mm512_set1_ps(x)};
}
HR_INLINE Vi splat(int32_t x) {
  return {_mm512_set1_epi32(x)};
}
HR_INLINE Vf load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
HR_INLINE Vf load(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(head(n), p)};
}
HR_INLINE void store(float* p, Vf a) {
  _mm512_storeu_ps(p, a.v);
}
HR_INLINE void store(float* p, Vf a, int64_t n) {
  _mm512_mask_storeu_ps(p, head(n), a.v);
}
// Past the caches; p must be a multiple of the vector's size.
HR_INLINE void stream(float* p, Vf a) {
  _mm512_stream_ps(p, a.v);
}
HR_INLINE Vi load(const int32_t* p) {
  return {_mm512_loadu_si512(p)};
}
HR_INLINE Vi load(const int32_t* p, int64_t n) {
  return {_mm512_maskz_loadu_epi32(head(n), p)};
}
HR_INLINE void store(int32_t* p, Vi a) {
  _mm512_storeu_si512(p, a.v);
}
HR_INLINE void store(int32_t* p, Vi a, int64_t n) {
  _mm512_mask_storeu_epi32(p, head(n), a.v);
}
HR_INLINE Vf operator+(Vf a, Vf b) {
  return {_mm512_add_ps(a.v, b.v)};
}
HR_INLINE Vf operator-(Vf a, Vf b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
HR_INLINE Vf operator*(Vf a, Vf b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
HR_INLINE Vf operator/(Vf a, Vf b) {
  return {_mm512_div_ps(a.v, b.v)};
}
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
// Like maxps/minps: the second operand where either is NaN.
HR_INLINE Vf max(Vf a, Vf b) {
  return {_mm512_max_ps(a.v, b.v)};
}
HR_INLINE Vf min(Vf a, Vf b) {
  return {_mm512_min_ps(a.v, b.v)};
}
HR_INLINE Vf sqrt(Vf a) {
  return {_mm512_sqrt_ps(a.v)};
}
// To the nearest integer, ties to even.
HR_INLINE Vf round(Vf a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
HR_INLINE Vm operator<(Vf a, Vf b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
HR_INLINE Vm operator<=(Vf a, Vf b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
}
HR_INLINE Vm operator==(Vf a, Vf b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)};
}
HR_INLINE Vm operator==(Vi a, Vi b) {
  return {_mm512_cmpeq_epi32_mask(a.v, b.v)};
}
HR_INLINE Vm is_nan(Vf a) {
  return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)};
}
HR_INLINE Vm operator&(Vm a, Vm b) {
  return {static_cast<__mmask16>(a.m & b.m)};
}
HR_INLINE Vm operator|(Vm a, Vm b) {
  return {static_cast<__mmask16>(a.m | b.m)};
}
// a where m, else b.
HR_INLINE Vf select(Vm m, Vf a, Vf b) {
  return {_mm512_mask_blend_ps(m.m, b.v, a.v)};
}
HR_INLINE Vi select(Vm m, Vi a, Vi b) {
  return {_mm512_mask_blend_epi32(m.m, b.v, a.v)};
}
HR_INLINE bool any(Vm m) {
  return m.m != 0;
}
// True in the lanes below n.
HR_INLINE Vm first_lanes(int64_t n) {
  return {head(n)};
}
HR_INLINE Vi operator+(Vi a, Vi b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
HR_INLINE Vi operator-(Vi a, Vi b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
HR_INLINE Vi operator&(Vi a, Vi b) {
  return {_mm512_and_si512(a.v, b.v)};
}
HR_INLINE Vi operator|(Vi a, Vi b) {
  return {_mm512_or_si512(a.v, b.v)};
}
HR_INLINE Vi operator^(Vi a, Vi b) {
  return {_mm512_xor_si512(a.v, b.v)};
}
template <int kBits>
HR_INLINE Vi shift_left(Vi a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
HR_INLINE Vi shift_right(Vi a) {  // arithmetic
  return {_mm512_srai_epi32(a.v, kBits)};
}
HR_INLINE Vf as_float(Vi a) {
  return {_mm512_castsi512_ps(a.v)};
}
HR_INLINE Vi as_int(Vf a) {
  return {_mm512_castps_si512(a.v)};
}
HR_INLINE Vi to_int(Vf a) {
  return {_mm512_cvtps_epi32(a.v)};
}  // nearest
HR_INLINE Vf to_float(Vi a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
HR_INLINE Vf gather(const float* base, Vi index) {
  return {_mm512_i32gather_ps(index.v, base, 4)};
}
HR_INLINE Vi gather(const int32_t* base, Vi index) {
  return {_mm512_i32gather_epi32(index.v, base, 4)};
}

}  // namespace headrace::HEADRACE_ISA_NS
