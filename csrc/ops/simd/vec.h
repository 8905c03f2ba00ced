// Vectors of float and int32 in the widest form of the ISA a *_kernels.cc file is compiled for.
//
// Everything here lives in the ISA's own namespace, so that no two ISAs share a symbol: the linker
// would keep one copy of a shared inline function, and it might hold the wrong instructions. For
// the same reason kernels use none of the std:: templates.
#pragma once

#include <cstdint>

#ifndef HEADRACE_ISA_NS
#error "vec.h is for files compiled once per ISA; HEADRACE_ISA_NS names the ISA's namespace"
#endif

#define HR_INLINE static inline __attribute__((always_inline))

// Each defines the same: vectors Vf and Vi, masks Vm, and the functions on them.
#if defined(__AVX512F__)
#include "ops/simd/vec_avx512.h"
#elif defined(__AVX2__)
#include "ops/simd/vec_avx2.h"
#elif defined(__aarch64__)
#include "ops/simd/vec_neon.h"
#else
#include "ops/simd/vec_generic.h"
#endif

namespace headrace::HEADRACE_ISA_NS {

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

#if !defined(__aarch64__)
// One factor for all lanes.
using Vs = Vf;
HR_INLINE Vs load_scalar(const float* p) {
  return splat(*p);
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
#endif
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
