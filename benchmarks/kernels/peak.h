// The machine's own limits, measured: what multiply-adds reach in registers, and how fast memory
// can be read. What a kernel reaches is quoted as a share of them, from the same run.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "core/cpu.h"

namespace headrace::peak {

inline constexpr int kRounds = 1 << 17;  // half a millisecond
inline constexpr int kChains = 12;  // two units of four cycles' latency each, and some to spare

// Wall seconds of the fastest of at least 16 calls within a tenth of a second: other processes only
// ever add time, and leave some of it alone.
template <class F>
double best_seconds(F f) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::infinity();
  auto end = Clock::now() + std::chrono::milliseconds(100);
  for (int i = 0; i < 16 || Clock::now() < end; ++i) {
    auto start = Clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

// One loop of kRounds x kChains independent `STEP(accumulator)` per instruction set. The chains are
// added up at the end, so that none of them can be left out.
#define HEADRACE_PEAK_LOOP(Vector, INIT, STEP, ADD)                                   \
  Vector acc[kChains];                                                                \
  for (int j = 0; j < kChains; ++j) acc[j] = INIT(j);                                 \
  for (int i = 0; i < kRounds; ++i) {                                                 \
    _Pragma("GCC unroll 12") for (int j = 0; j < kChains; ++j) acc[j] = STEP(acc[j]); \
  }                                                                                   \
  for (int j = 1; j < kChains; ++j) acc[0] = ADD(acc[0], acc[j])

inline float chains_reference() {
#if defined(__aarch64__)
  float32x4_t x = vdupq_n_f32(0.999f), y = vdupq_n_f32(0.001f);
#define INIT(j) vdupq_n_f32(static_cast<float>(j))
#define STEP(acc) vfmaq_f32(y, acc, x)
  HEADRACE_PEAK_LOOP(float32x4_t, INIT, STEP, vaddq_f32);
  return vgetq_lane_f32(acc[0], 0);
#else
  typedef float Vector __attribute__((vector_size(16)));
  Vector x = Vector{} + 0.999f, y = Vector{} + 0.001f;
#define INIT(j) (Vector{} + static_cast<float>(j))
#define STEP(acc) (acc) * x + y
#define ADD(a, b) ((a) + (b))
  HEADRACE_PEAK_LOOP(Vector, INIT, STEP, ADD);
#undef ADD
  return acc[0][0];
#endif
#undef STEP
#undef INIT
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) inline float chains_avx2() {
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
#define INIT(j) _mm256_set1_ps(static_cast<float>(j))
#define STEP(acc) _mm256_fmadd_ps(acc, x, y)
  HEADRACE_PEAK_LOOP(__m256, INIT, STEP, _mm256_add_ps);
#undef STEP
#undef INIT
  return acc[0][0];
}

__attribute__((target("avx512f"))) inline float chains_avx512() {
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
#define INIT(j) _mm512_set1_ps(static_cast<float>(j))
#define STEP(acc) _mm512_fmadd_ps(acc, x, y)
  HEADRACE_PEAK_LOOP(__m512, INIT, STEP, _mm512_add_ps);
#undef STEP
#undef INIT
  return acc[0][0];
}

__attribute__((target("avx512f,avx512bf16"))) inline float chains_bf16() {
  __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
#define INIT(j) _mm512_set1_ps(static_cast<float>(j))
#define STEP(acc) _mm512_dpbf16_ps(acc, x, x)
  HEADRACE_PEAK_LOOP(__m512, INIT, STEP, _mm512_add_ps);
#undef STEP
#undef INIT
  return acc[0][0];
}

__attribute__((target("avx512f,avx512vnni"))) inline float chains_int8() {
  __m512i x = _mm512_set1_epi8(3);
#define INIT(j) _mm512_set1_epi32(j)
#define STEP(acc) _mm512_dpbusd_epi32(acc, x, x)
  HEADRACE_PEAK_LOOP(__m512i, INIT, STEP, _mm512_add_epi32);
#undef STEP
#undef INIT
  return static_cast<float>(acc[0][0]);
}
#elif defined(__aarch64__)
__attribute__((target("arch=armv8.6-a"))) inline float chains_bf16() {
  bfloat16x8_t x = vreinterpretq_bf16_u16(vdupq_n_u16(0x3e80));  // 0.25
#define INIT(j) vdupq_n_f32(static_cast<float>(j))
#define STEP(acc) vbfmmlaq_f32(acc, x, x)
  HEADRACE_PEAK_LOOP(float32x4_t, INIT, STEP, vaddq_f32);
#undef STEP
#undef INIT
  return vgetq_lane_f32(acc[0], 0);
}

__attribute__((target("arch=armv8.6-a"))) inline float chains_int8() {
  int8x16_t x = vdupq_n_s8(3);
#define INIT(j) vdupq_n_s32(j)
#define STEP(acc) vmmlaq_s32(acc, x, x)
  HEADRACE_PEAK_LOOP(int32x4_t, INIT, STEP, vaddq_s32);
#undef STEP
#undef INIT
  return static_cast<float>(vgetq_lane_s32(acc[0], 0));
}

__attribute__((target("arch=armv8.2-a+dotprod"))) inline float chains_int8_dot() {
  int8x16_t x = vdupq_n_s8(3);
#define INIT(j) vdupq_n_s32(j)
#define STEP(acc) vdotq_s32(acc, x, x)
  HEADRACE_PEAK_LOOP(int32x4_t, INIT, STEP, vaddq_s32);
#undef STEP
#undef INIT
  return static_cast<float>(vgetq_lane_s32(acc[0], 0));
}
#endif
#undef HEADRACE_PEAK_LOOP

// Giga-operations per second of one core: `per_step` operations in each step of each chain.
inline double giga_per_second(float (*chains)(), int per_step) {
  volatile float sink = 0;
  double seconds = best_seconds([&] { sink = sink + chains(); });
  return static_cast<double>(per_step) * kChains * kRounds / seconds * 1e-9;
}

// GFLOP/s of independent fp32 multiply-adds on one core, with this ISA's widest registers.
inline double fp32_gflops([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return giga_per_second(chains_avx2, 2 * 8);
  if (isa >= Isa::kAvx512) return giga_per_second(chains_avx512, 2 * 16);
#endif
  return giga_per_second(chains_reference, 2 * 4);
}

// GFLOP/s of bf16 pair products added up in fp32 (dpbf16, bfmmla), on one core; 0 where the ISA has
// no instruction for it that this file knows.
inline double bf16_gflops([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Bf16) return giga_per_second(chains_bf16, 2 * 32);
#elif defined(__aarch64__)
  if (isa >= Isa::kNeonBf16) return giga_per_second(chains_bf16, 2 * 16);
#endif
  return 0;
}

// Giga-operations per second of int8 products of four, added up in int32 (vpdpbusd, smmla, sdot),
// on one core; 0 where the ISA or the CPU has no instruction for it that this file knows.
inline double int8_gops([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) return giga_per_second(chains_int8, 2 * 64);
#elif defined(__aarch64__)
  if (isa == Isa::kNeonBf16) return giga_per_second(chains_int8, 2 * 32);
  if (isa == Isa::kNeonDot) return giga_per_second(chains_int8_dot, 2 * 16);
#endif
  return 0;
}

}  // namespace headrace::peak
