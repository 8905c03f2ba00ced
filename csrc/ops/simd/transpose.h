// Transposing square blocks of floats in registers.
#pragma once

#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {

// a0 b0 a1 b1 ... of the lower or the upper halves of a and b.
#if defined(__AVX512F__)
HR_INLINE Vf interleave_low(Vf a, Vf b) {
  __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return {_mm512_permutex2var_ps(a.v, index, b.v)};
}
HR_INLINE Vf interleave_high(Vf a, Vf b) {
  __m512i index = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return {_mm512_permutex2var_ps(a.v, index, b.v)};
}
#elif defined(__AVX2__)
HR_INLINE Vf interleave_low(Vf a, Vf b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
}
HR_INLINE Vf interleave_high(Vf a, Vf b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
}
#elif defined(__aarch64__)
HR_INLINE Vf interleave_low(Vf a, Vf b) {
  return {vzip1q_f32(a.v, b.v)};
}
HR_INLINE Vf interleave_high(Vf a, Vf b) {
  return {vzip2q_f32(a.v, b.v)};
}
#else
HR_INLINE Vf interleave_low(Vf a, Vf b) {
  return {RawF{a.v[0], b.v[0], a.v[1], b.v[1]}};
}
HR_INLINE Vf interleave_high(Vf a, Vf b) {
  return {RawF{a.v[2], b.v[2], a.v[3], b.v[3]}};
}
#endif

// Lane j of row i becomes lane i of row j. Each round moves one bit of the row's number to the
// lane's and one back.
HR_INLINE void transpose(Vf (&rows)[Vf::kLanes]) {
  for (int bit = 1; bit < Vf::kLanes; bit *= 2) {
    Vf mixed[Vf::kLanes];
    for (int i = 0; i < Vf::kLanes / 2; ++i) {
      mixed[2 * i] = interleave_low(rows[i], rows[i + Vf::kLanes / 2]);
      mixed[2 * i + 1] = interleave_high(rows[i], rows[i + Vf::kLanes / 2]);
    }
    for (int i = 0; i < Vf::kLanes; ++i) rows[i] = mixed[i];
  }
}

}  // namespace headrace::HEADRACE_ISA_NS
