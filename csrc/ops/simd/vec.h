// Vectors of float and int32 in the widest form of the ISA a *_kernels.cc file is compiled for.
//
// Everything here lives in the ISA's own namespace, so that no two ISAs share a symbol: the linker
// would keep one copy of a shared inline function, and it might hold the wrong instructions. For
// the same reason kernels use none of the std:: templates.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef HEADRACE_ISA_NS
#error "vec.h is for files compiled once per ISA; HEADRACE_ISA_NS names the ISA's namespace"
#endif

namespace headrace::HEADRACE_ISA_NS {

#define HR_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

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

#elif defined(__AVX2__)

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

#else

// The compiler's own vectors: SSE on x86, NEON on aarch64.
typedef float RawF __attribute__((vector_size(16)));
typedef int32_t RawI __attribute__((vector_size(16)));
struct Vi {
  static constexpr int kLanes = 4;
  RawI v;
};
struct Vm {
  RawI m;
};
struct Vf {
  static constexpr int kLanes = 4;
  RawF v;
};
HR_INLINE Vf splat(float x) {
  return {RawF{x, x, x, x}};
}
HR_INLINE Vi splat(int32_t x) {
  return {RawI{x, x, x, x}};
}
HR_INLINE Vf load(const float* p) {
  Vf a;
  __builtin_memcpy(&a.v, p, sizeof(a.v));
  return a;
}
HR_INLINE Vf load(const float* p, int64_t n) {
  Vf a = splat(0.0f);
  for (int i = 0; i < 4 && i < n; ++i) a.v[i] = p[i];
  return a;
}
HR_INLINE void store(float* p, Vf a) {
  __builtin_memcpy(p, &a.v, sizeof(a.v));
}
HR_INLINE void store(float* p, Vf a, int64_t n) {
  for (int i = 0; i < 4 && i < n; ++i) p[i] = a.v[i];
}
HR_INLINE void stream(float* p, Vf a) {
#if defined(__x86_64__)
  __builtin_ia32_movntps(p, a.v);
#else
  store(p, a);
#endif
}
HR_INLINE Vi load(const int32_t* p) {
  Vi a;
  __builtin_memcpy(&a.v, p, sizeof(a.v));
  return a;
}
HR_INLINE Vi load(const int32_t* p, int64_t n) {
  Vi a = splat(0);
  for (int i = 0; i < 4 && i < n; ++i) a.v[i] = p[i];
  return a;
}
HR_INLINE void store(int32_t* p, Vi a) {
  __builtin_memcpy(p, &a.v, sizeof(a.v));
}
HR_INLINE void store(int32_t* p, Vi a, int64_t n) {
  for (int i = 0; i < 4 && i < n; ++i) p[i] = a.v[i];
}
HR_INLINE Vf operator+(Vf a, Vf b) {
  return {a.v + b.v};
}
HR_INLINE Vf operator-(Vf a, Vf b) {
  return {a.v - b.v};
}
HR_INLINE Vf operator*(Vf a, Vf b) {
  return {a.v * b.v};
}
HR_INLINE Vf operator/(Vf a, Vf b) {
  return {a.v / b.v};
}
#if defined(__ARM_FEATURE_FMA) || defined(__FMA__)
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  Vf r;
  for (int i = 0; i < 4; ++i) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return fma({-a.v}, b, c);
}
#else
// Rounded twice: the baseline has no fused instruction, and emulating one would cost tenfold.
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  return {a.v * b.v + c.v};
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return {c.v - a.v * b.v};
}
#endif
HR_INLINE Vf max(Vf a, Vf b) {
  return {a.v > b.v ? a.v : b.v};
}
HR_INLINE Vf min(Vf a, Vf b) {
  return {a.v < b.v ? a.v : b.v};
}
HR_INLINE Vf sqrt(Vf a) {
  for (int i = 0; i < 4; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
HR_INLINE Vf round(Vf a) {
  for (int i = 0; i < 4; ++i) a.v[i] = __builtin_rintf(a.v[i]);
  return a;
}
HR_INLINE Vm operator<(Vf a, Vf b) {
  return {a.v < b.v};
}
HR_INLINE Vm operator<=(Vf a, Vf b) {
  return {a.v <= b.v};
}
HR_INLINE Vm operator==(Vf a, Vf b) {
  return {a.v == b.v};
}
HR_INLINE Vm operator==(Vi a, Vi b) {
  return {a.v == b.v};
}
HR_INLINE Vm is_nan(Vf a) {
  return {a.v != a.v};
}
HR_INLINE Vm operator&(Vm a, Vm b) {
  return {a.m & b.m};
}
HR_INLINE Vm operator|(Vm a, Vm b) {
  return {a.m | b.m};
}
HR_INLINE Vf select(Vm m, Vf a, Vf b) {
  return {m.m ? a.v : b.v};
}
HR_INLINE Vi select(Vm m, Vi a, Vi b) {
  return {m.m ? a.v : b.v};
}
HR_INLINE bool any(Vm m) {
  return (m.m[0] | m.m[1] | m.m[2] | m.m[3]) != 0;
}
HR_INLINE Vm first_lanes(int64_t n) {
  int32_t count = n >= 4 ? 4 : static_cast<int32_t>(n);
  return {RawI{0, 1, 2, 3} < RawI{count, count, count, count}};
}
HR_INLINE Vi operator+(Vi a, Vi b) {
  return {a.v + b.v};
}
HR_INLINE Vi operator-(Vi a, Vi b) {
  return {a.v - b.v};
}
HR_INLINE Vi operator&(Vi a, Vi b) {
  return {a.v & b.v};
}
HR_INLINE Vi operator|(Vi a, Vi b) {
  return {a.v | b.v};
}
HR_INLINE Vi operator^(Vi a, Vi b) {
  return {a.v ^ b.v};
}
template <int kBits>
HR_INLINE Vi shift_left(Vi a) {
  return {a.v << kBits};
}
template <int kBits>
HR_INLINE Vi shift_right(Vi a) {
  return {a.v >> kBits};
}
HR_INLINE Vf as_float(Vi a) {
  Vf r;
  __builtin_memcpy(&r.v, &a.v, sizeof(r.v));
  return r;
}
HR_INLINE Vi as_int(Vf a) {
  Vi r;
  __builtin_memcpy(&r.v, &a.v, sizeof(r.v));
  return r;
}
HR_INLINE Vi to_int(Vf a) {
  return {__builtin_convertvector(round(a).v, RawI)};
}
HR_INLINE Vf to_float(Vi a) {
  return {__builtin_convertvector(a.v, RawF)};
}
HR_INLINE Vf gather(const float* base, Vi index) {
  return {RawF{base[index.v[0]], base[index.v[1]], base[index.v[2]], base[index.v[3]]}};
}
HR_INLINE Vi gather(const int32_t* base, Vi index) {
  return {RawI{base[index.v[0]], base[index.v[1]], base[index.v[2]], base[index.v[3]]}};
}

#endif

// Call after the last stream(), before another thread is told of what was written.
HR_INLINE void end_stream() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// out[i] = f(i, lanes) for the n elements of `out`, a vector at a time; lanes < Vf::kLanes in the
// last, and in the first where streaming needs alignment. f must give each element the same in any
// lane.
template <class F>
HR_INLINE void fill_vectors(float* out, int64_t n, bool streams, F f) {
  int64_t i = 0;
  if (streams) {
    auto misplaced = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / 4 % Vf::kLanes);
    if (misplaced > 0) {
      i = Vf::kLanes - misplaced < n ? Vf::kLanes - misplaced : n;
      store(out, f(int64_t{0}, i), i);
    }
    for (; i + Vf::kLanes <= n; i += Vf::kLanes) stream(out + i, f(i, int64_t{Vf::kLanes}));
    end_stream();
  } else {
    for (; i + Vf::kLanes <= n; i += Vf::kLanes) store(out + i, f(i, int64_t{Vf::kLanes}));
  }
  if (i < n) store(out + i, f(i, n - i), n - i);
}
HR_INLINE Vf load_some(const float* p, int64_t lanes) {
  return lanes == Vf::kLanes ? load(p) : load(p, lanes);
}

// Lanes reduced in one fixed tree: halves, quarters, ... so the result is the same every time.
HR_INLINE float sum(Vf a) {
  float lanes[Vf::kLanes];
  store(lanes, a);
  for (int width = Vf::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
HR_INLINE float max_lane(Vf a) {
  float lanes[Vf::kLanes];
  store(lanes, a);
  for (int width = Vf::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}
HR_INLINE Vf abs(Vf a) {
  return as_float(as_int(a) & splat(int32_t{0x7fffffff}));
}
HR_INLINE Vf neg(Vf a) {
  return as_float(as_int(a) ^ splat(INT32_MIN));
}
// |a| with the sign of b.
HR_INLINE Vf copysign(Vf a, Vf b) {
  return as_float((as_int(a) & splat(int32_t{0x7fffffff})) | (as_int(b) & splat(INT32_MIN)));
}

}  // namespace headrace::HEADRACE_ISA_NS
