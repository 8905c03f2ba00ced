// Attention on pairs of bfloat16, 32 multiply-adds an instruction.
#include "ops/attention/attend.h"

namespace headrace::avx512_bf16 {
namespace {

struct Bf16Pairs {
  static constexpr int64_t kPerWord = 2;
  HR_INLINE Vf pairs(Vf low, Vf high) {
    return {__builtin_bit_cast(__m512, _mm512_cvtne2ps_pbh(high.v, low.v))};
  }
  HR_INLINE Vf row(const float* from, int64_t n) {
    return pairs(get(from, n), n > kLanes ? get(from + kLanes, n - kLanes) : splat(0.0f));
  }
  HR_INLINE Vf row(const uint16_t* from, int64_t n) {
    const __mmask32 mask = n >= 2 * kLanes ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from))};
  }
  HR_INLINE Vf word(const Vf* x) {
    // Lanes 0 .. 15 hold x[0], 16 .. 31 x[1].
    alignas(64) static constexpr uint16_t kInterleave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(x[1].v, x[0].v));
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both))};
  }
  // A product with pairs of ones.
  HR_INLINE Vf add(Vf word, Vf sum) { return dot(splat(int32_t{0x3f803f80}), as_int(word), sum); }
  HR_INLINE Vi broadcast(const float* word) { return {_mm512_castps_si512(splat(*word).v)}; }
  HR_INLINE Vi load(const float* words) { return as_int(avx512_bf16::load(words)); }
  HR_INLINE Vf dot(Vi a, Vi b, Vf sum) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

}  // namespace

extern const AttentionKernels attention_bf16_kernels;
const AttentionKernels attention_bf16_kernels = {
    .query_block = kQueryBlock,
    .query_lanes = kWidth,
    .scratch_floats = scratch_floats<Bf16Pairs>,
    .attend = attend<Bf16Pairs>,
};

}  // namespace headrace::avx512_bf16
