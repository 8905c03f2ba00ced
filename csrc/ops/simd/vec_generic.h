// vec.h in the compiler's own vectors, 4 lanes: SSE on x86's baseline, and whatever it finds where
// nobody has written better.
#pragma once

namespace headrace::HEADRACE_ISA_NS {

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
// Rounded twice: the baseline has no fused instruction, and emulating one would cost tenfold.
HR_INLINE Vf fma(Vf a, Vf b, Vf c) {
  return {a.v * b.v + c.v};
}
HR_INLINE Vf fnma(Vf a, Vf b, Vf c) {
  return {c.v - a.v * b.v};
}
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

}  // namespace headrace::HEADRACE_ISA_NS
