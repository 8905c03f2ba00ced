// The way of 32-bit sums into Y: see static_int8.h.
#pragma once

#include "ops/linear/static_int8.h"
#include "ops/simd/narrow.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

enum class StaticEnd { kBytes, kResidual, kRoundedResidual, kFloats, kSums };

constexpr bool has_residual(StaticEnd end) {
  return end == StaticEnd::kResidual || end == StaticEnd::kRoundedResidual;
}

// Bytes of an element of Y.
constexpr int64_t size_of(StaticEnd end) {
  return end == StaticEnd::kFloats || end == StaticEnd::kSums ? 4 : 1;
}

template <StaticEnd kValue>
struct StaticEndIs {
  static constexpr StaticEnd kEnd = kValue;
};

// Calls f with the StaticEndIs that fits.
template <class F>
HR_INLINE void with_static_end(const StaticFinish& finish, F f) {
  if (finish.sums) return f(StaticEndIs<StaticEnd::kSums>{});
  if (finish.floats) return f(StaticEndIs<StaticEnd::kFloats>{});
  if (finish.residual == nullptr) return f(StaticEndIs<StaticEnd::kBytes>{});
  if (finish.rounds_product) return f(StaticEndIs<StaticEnd::kRoundedResidual>{});
  f(StaticEndIs<StaticEnd::kResidual>{});
}

// Copies n < Vf::kLanes bytes.
HR_INLINE void copy_few_bytes(const uint8_t* from, int64_t n, uint8_t* to) {
  int64_t i = 0;
  if constexpr (Vf::kLanes > 8) {
    if (n >= 8) __builtin_memcpy(to, from, i = 8);
  }
  if constexpr (Vf::kLanes > 4) {
    if (n - i >= 4) {
      __builtin_memcpy(to + i, from + i, 4);
      i += 4;
    }
  }
  for (; i < n; ++i) to[i] = from[i];
}

// The first n < Vf::kLanes lanes' bytes, 0 in the others.
HR_INLINE Vi load_few_bytes(const uint8_t* from, int64_t n) {
#if defined(__AVX512F__)
  return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n).m, from))};
#else
  uint8_t all[Vf::kLanes] = {};
  copy_few_bytes(from, n, all);
  return U8::load(all);
#endif
}

// Vf::kLanes sums, of which `n` are columns of Y.
template <StaticEnd kEnd>
HR_INLINE void finish_sums(const StaticFinish& f, Vi sum, Vf factor, Vf bias,
                           const uint8_t* residual, void* y, int64_t n) {
  if constexpr (kEnd == StaticEnd::kSums) {
    auto* to = static_cast<int32_t*>(y);
    return n >= Vf::kLanes ? store(to, sum) : store(to, sum, n);
  }
  Vf x = to_float(sum) * factor + bias;
  if constexpr (has_residual(kEnd)) {
    if constexpr (kEnd == StaticEnd::kRoundedResidual) {
      x = round(min(splat(f.product_high), max(splat(f.product_low), x))) * splat(f.product_factor);
    }
    Vi r = n >= Vf::kLanes ? U8::load(residual) : load_few_bytes(residual, n);
    r = (r ^ splat(static_cast<int32_t>(f.residual_zero.flip))) - splat(f.residual_zero.zero);
    x = x + to_float(r) * splat(f.residual_factor);
  }
  x = min(splat(f.high), max(splat(f.low), x));
  if constexpr (kEnd == StaticEnd::kFloats) {
    auto* to = static_cast<float*>(y);
    if (n >= Vf::kLanes) return store(to, x);
    return store(to, x, n);
  } else {
    const Vi q = (to_int(x) + splat(f.y.zero)) ^ splat(static_cast<int32_t>(f.y.flip));
    auto* to = static_cast<uint8_t*>(y);
    if (n >= Vf::kLanes) return U8::store(to, q);
    uint8_t all[Vf::kLanes];
    U8::store(all, q);
    copy_few_bytes(all, n, to);
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
