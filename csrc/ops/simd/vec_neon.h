// vec.h for aarch64's NEON: 4 lanes.
#pragma once

#include <arm_neon.h>

namespace headrace::HEADRACE_ISA_NS {

struct Vi {
  static constexpr int kLanes = 4;
  int32x4_t v;
};
struct Vm {
  uint32x4_t m;
};
struct Vf {
  static constexpr int kLanes = 4;
  float32x4_t v;
};
// One factor for all lanes. It stays a scalar: fmla takes it by element, where copying it to the
// lanes would cost a multiply-add's turn.
struct Vs {
  float x;
};
HR_INLINE Vf splat(float x) {
  return {vdupq_n_f32(x)};
}
HR_INLINE Vi splat(int32_t x) {
  return {vdupq_n_s32(x)};
}
HR_INLINE Vs load_scalar(const float* p) {
  return {*p};
}
HR_INLINE Vf load(const float* p) {
  return {vld1q_f32(p)};
}
HR_INLINE Vf load(const float* p, int64_t n) {
  if (n >= 4) return load(p);
  float32x4_t a = vdupq_n_f32(0.0f);
  if (n > 0) a = vld1q_lane_f32(p, a, 0);
  if (n > 1) a = vld1q_lane_f32(p + 1, a, 1);
  if (n > 2) a = vld1q_lane_f32(p + 2, a, 2);
  return {a};
}
HR_INLINE void store(float* p, Vf a) {
  vst1q_f32(p, a.v);
}
HR_INLINE void store(float* p, Vf a, int64_t n) {
  if (n >= 4) return store(p, a);
  if (n > 0) vst1q_lane_f32(p, a.v, 0);
  if (n > 1) vst1q_lane_f32(p + 1, a.v, 1);
  if (n > 2) vst1q_lane_f32(p + 2, a.v, 2);
}
// NEON has no store past the caches for one vector.
HR_INLINE void stream(float* p, Vf a) {
  store(p, a);
}
HR_INLINE Vi load(const int32_t* p) {
  return {vld1q_s32(p)};
}
HR_INLINE Vi load(const int32_t* p, int64_t n) {
  return {vreinterpretq_s32_f32(load(reinterpret_cast<const float*>(p), n).v)};
}
HR_INLINE void store(int32_t* p, Vi a) {
  vst1q_s32(p, a.v);
}
HR_INLINE void store(int32_t* p, Vi a, int64_t n) {
  store(reinterpret_cast<float*>(p), {vreinterpretq_f32_s32(a.v)}, n);
}
HR_INLINE Vf operator+(Vf a, Vf b) {
  return {vaddq_f32(a.v, b.v)};
}
HR_INLINE Vf operator-(Vf a, Vf b) {
  return {vsubq_f32(a.v, b.v)};
}
HR_INLINE Vf operator*(Vf a, Vf b) {
  return {vmulq_f32(a.v, b.v)};
}
HR_INLINE Vf operator/(Vf a, Vf b) {
  return {vdivq_f32(a.v, b.v)};
}
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
HR_INLINE Vf fma(Vs a, Vf b, Vf c) {
  return {vfmaq_n_f32(c.v, b.v, a.x)};
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return {vfmsq_f32(c.v, a.v, b.v)};
}
// Not fmax: the second operand comes out where either is NaN.
HR_INLINE Vf max(Vf a, Vf b) {
  return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)};
}
HR_INLINE Vf min(Vf a, Vf b) {
  return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)};
}
HR_INLINE Vf sqrt(Vf a) {
  return {vsqrtq_f32(a.v)};
}
HR_INLINE Vf round(Vf a) {
  return {vrndnq_f32(a.v)};
}
HR_INLINE Vm operator<(Vf a, Vf b) {
  return {vcltq_f32(a.v, b.v)};
}
HR_INLINE Vm operator<=(Vf a, Vf b) {
  return {vcleq_f32(a.v, b.v)};
}
HR_INLINE Vm operator==(Vf a, Vf b) {
  return {vceqq_f32(a.v, b.v)};
}
HR_INLINE Vm operator==(Vi a, Vi b) {
  return {vceqq_s32(a.v, b.v)};
}
HR_INLINE Vm is_nan(Vf a) {
  return {vmvnq_u32(vceqq_f32(a.v, a.v))};
}
HR_INLINE Vm operator&(Vm a, Vm b) {
  return {vandq_u32(a.m, b.m)};
}
HR_INLINE Vm operator|(Vm a, Vm b) {
  return {vorrq_u32(a.m, b.m)};
}
HR_INLINE Vf select(Vm m, Vf a, Vf b) {
  return {vbslq_f32(m.m, a.v, b.v)};
}
HR_INLINE Vi select(Vm m, Vi a, Vi b) {
  return {vbslq_s32(m.m, a.v, b.v)};
}
HR_INLINE bool any(Vm m) {
  return vmaxvq_u32(m.m) != 0;
}
HR_INLINE Vm first_lanes(int64_t n) {
  const int32x4_t lane = {0, 1, 2, 3};
  return {vcltq_s32(lane, vdupq_n_s32(n >= 4 ? 4 : static_cast<int32_t>(n)))};
}
HR_INLINE Vi operator+(Vi a, Vi b) {
  return {vaddq_s32(a.v, b.v)};
}
HR_INLINE Vi operator-(Vi a, Vi b) {
  return {vsubq_s32(a.v, b.v)};
}
HR_INLINE Vi operator&(Vi a, Vi b) {
  return {vandq_s32(a.v, b.v)};
}
HR_INLINE Vi operator|(Vi a, Vi b) {
  return {vorrq_s32(a.v, b.v)};
}
HR_INLINE Vi operator^(Vi a, Vi b) {
  return {veorq_s32(a.v, b.v)};
}
template <int kBits>
HR_INLINE Vi shift_left(Vi a) {
  return {vshlq_n_s32(a.v, kBits)};
}
template <int kBits>
HR_INLINE Vi shift_right(Vi a) {
  return {vshrq_n_s32(a.v, kBits)};
}
HR_INLINE Vf as_float(Vi a) {
  return {vreinterpretq_f32_s32(a.v)};
}
HR_INLINE Vi as_int(Vf a) {
  return {vreinterpretq_s32_f32(a.v)};
}
HR_INLINE Vi to_int(Vf a) {
  return {vcvtnq_s32_f32(a.v)};
}
HR_INLINE Vf to_float(Vi a) {
  return {vcvtq_f32_s32(a.v)};
}
HR_INLINE Vf gather(const float* base, Vi index) {
  float32x4_t a = vdupq_n_f32(base[vgetq_lane_s32(index.v, 0)]);
  a = vld1q_lane_f32(base + vgetq_lane_s32(index.v, 1), a, 1);
  a = vld1q_lane_f32(base + vgetq_lane_s32(index.v, 2), a, 2);
  return {vld1q_lane_f32(base + vgetq_lane_s32(index.v, 3), a, 3)};
}
HR_INLINE Vi gather(const int32_t* base, Vi index) {
  return as_int(gather(reinterpret_cast<const float*>(base), index));
}
// Halves, then quarters, as everywhere.
HR_INLINE float sum(Vf a) {
  return vpadds_f32(vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v)));
}
HR_INLINE float max_lane(Vf a) {
  Vf half = max(a, {vextq_f32(a.v, a.v, 2)});
  return vgetq_lane_f32(max(half, {vextq_f32(half.v, half.v, 1)}).v, 0);
}

}  // namespace headrace::HEADRACE_ISA_NS
