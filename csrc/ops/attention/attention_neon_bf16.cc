// Attention on pairs of bfloat16, 8 multiply-adds an instruction.
#include "ops/attention/attend.h"

namespace headrace::neon_bf16 {
namespace {

struct Bf16Pairs {
  static constexpr int64_t kPerWord = 2;
  HR_INLINE Vf row(const float* from, int64_t n) {
    Vf high = n > kLanes ? get(from + kLanes, n - kLanes) : splat(0.0f);
    return as_words(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(get(from, n).v), high.v));
  }
  HR_INLINE Vf row(const uint16_t* from, int64_t n) {
    if (n >= 2 * kLanes) return {vreinterpretq_f32_u16(vld1q_u16(from))};
    uint16_t lanes[2 * kLanes] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = from[i];
    return {vreinterpretq_f32_u16(vld1q_u16(lanes))};
  }
  HR_INLINE Vf word(const Vf* x) {
    uint16x8_t first = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(x[0].v));
    uint16x8_t second = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(x[1].v));
    return {vreinterpretq_f32_u16(vzip1q_u16(first, second))};
  }
  HR_INLINE Vf add(Vf word, Vf sum) {
    Vi first = shift_left<16>(as_int(word));
    Vi second = as_int(word) & splat(static_cast<int32_t>(0xffff0000u));
    return sum + as_float(first) + as_float(second);
  }
  HR_INLINE bfloat16x8_t broadcast(const float* word) {
    return vreinterpretq_bf16_f32(vld1q_dup_f32(word));
  }
  HR_INLINE bfloat16x8_t load(const float* words) {
    return vreinterpretq_bf16_f32(vld1q_f32(words));
  }
  HR_INLINE Vf dot(bfloat16x8_t a, bfloat16x8_t b, Vf sum) { return {vbfdotq_f32(sum.v, a, b)}; }

 private:
  HR_INLINE Vf as_words(bfloat16x8_t x) { return {vreinterpretq_f32_bf16(x)}; }
};

}  // namespace

extern const AttentionKernels attention_bf16_kernels;
const AttentionKernels attention_bf16_kernels = {
    .query_block = kQueryBlock,
    .query_lanes = kWidth,
    .scratch_floats = scratch_floats<Bf16Pairs>,
    .attend = attend<Bf16Pairs>,
};

}  // namespace headrace::neon_bf16
