#include "ops/quantize/quantize_kernels.h"

#include "ops/simd/narrow.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <class Int>
HR_INLINE Vi quantized(Vf x, Vf scale, Vi zero) {
  // Saturating before the zero point is added, where every bound is an exact float.
  const Vf low = to_float(splat(Int::kLowest) - zero);
  const Vf high = to_float(splat(Int::kHighest) - zero);
  Vf near = round(x / scale);
  near = select(is_nan(near), splat(0.0f), near);
  return to_int(min(max(near, low), high)) + zero;
}

template <class Int>
void quantize(const void* x, void* y, int64_t n, float scale, int32_t zero) {
  const Vf by = splat(scale);
  const Vi offset = splat(zero);
  convert<F32, Int>(
      static_cast<const float*>(x), static_cast<typename Int::Element*>(y), n,
      [=](Vf value) __attribute__((always_inline)) { return quantized<Int>(value, by, offset); });
}

template <class Int>
void dequantize(const void* x, void* y, int64_t n, float scale, int32_t zero) {
  const Vf by = splat(scale);
  const Vi offset = splat(zero);
  convert<Int, F32>(static_cast<const typename Int::Element*>(x), static_cast<float*>(y), n,
                    [=](Vi value)
                        __attribute__((always_inline)) { return to_float(value - offset) * by; });
}

// The first `n` of a vector's elements, or all of them; zeros behind.
template <class T>
HR_INLINE auto load_first(const typename T::Element* p, int64_t n) {
  if (n >= Vf::kLanes) return T::load(p);
  typename T::Element all[Vf::kLanes] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i];
  return T::load(all);
}
template <class T, class V>
HR_INLINE void store_first(typename T::Element* p, V a, int64_t n) {
  if (n >= Vf::kLanes) return T::store(p, a);
  typename T::Element all[Vf::kLanes];
  T::store(all, a);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

// Calls body(i, scales, zero points) for every vector of elements from the i-th on.
template <class Int, class Body>
HR_INLINE void each_scale(int64_t n, const float* scales, const void* zeros, Body body) {
  const auto* zero = static_cast<const typename Int::Element*>(zeros);
  for (int64_t i = 0; i < n; i += Vf::kLanes) {
    const Vf scale = load_first<F32>(scales + i, n - i);
    body(i, scale, zero == nullptr ? splat(int32_t{0}) : load_first<Int>(zero + i, n - i));
  }
}

template <class Int>
void quantize_each(const void* x, void* y, int64_t n, const float* scales, const void* zeros) {
  const auto* from = static_cast<const float*>(x);
  auto* to = static_cast<typename Int::Element*>(y);
  each_scale<Int>(n, scales, zeros, [&](int64_t i, Vf scale, Vi zero) {
    Vi q = quantized<Int>(load_first<F32>(from + i, n - i), scale, zero);
    store_first<Int>(to + i, q, n - i);
  });
}

template <class Int>
void dequantize_each(const void* x, void* y, int64_t n, const float* scales, const void* zeros) {
  const auto* from = static_cast<const typename Int::Element*>(x);
  auto* to = static_cast<float*>(y);
  each_scale<Int>(n, scales, zeros, [&](int64_t i, Vf scale, Vi zero) {
    Vf value = to_float(load_first<Int>(from + i, n - i) - zero) * scale;
    store_first<F32>(to + i, value, n - i);
  });
}

void range(const float* x, int64_t n, float* low, float* high) {
  constexpr int64_t kLanes = Vf::kLanes;
  Vf least = splat(0.0f);
  Vf greatest = splat(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vf value = load_first<F32>(x + i, n - i);
    // The second operand comes out where the first is NaN.
    least = min(value, least);
    greatest = max(value, greatest);
  }
  *low = -max_lane(neg(least));
  *high = max_lane(greatest);
}

HR_INLINE Vf term_of(const ByteTerm& t, Vi x) {
  return to_float((x ^ splat(static_cast<int32_t>(t.flip))) - splat(t.zero)) * splat(t.factor);
}

void add(const ByteSum& sum, int64_t n) {
  constexpr int64_t kLanes = Vf::kLanes;
  const ByteSum s = sum;
  auto add_at = [&](const uint8_t* a, const uint8_t* b, uint8_t* y) __attribute__((always_inline)) {
    Vf x = term_of(s.a, U8::load(a)) + term_of(s.b, U8::load(b));
    x = min(splat(s.high), max(splat(s.low), x));
    U8::store(y, (to_int(x) + splat(s.zero)) ^ splat(static_cast<int32_t>(s.flip)));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add_at(s.a.x + i, s.b.x + i, s.y + i);
  if (i == n) return;
  uint8_t a[kLanes] = {};
  uint8_t b[kLanes] = {};
  uint8_t y[kLanes];
  for (int64_t j = 0; j < n - i; ++j) {
    a[j] = s.a.x[i + j];
    b[j] = s.b.x[i + j];
  }
  add_at(a, b, y);
  for (int64_t j = 0; j < n - i; ++j) s.y[i + j] = y[j];
}

}  // namespace

extern const QuantizeKernels quantize_kernels = {
    .to_u8 = quantize<U8>,
    .to_i8 = quantize<I8>,
    .from_u8 = dequantize<U8>,
    .from_i8 = dequantize<I8>,
    .each_to_u8 = quantize_each<U8>,
    .each_to_i8 = quantize_each<I8>,
    .each_from_u8 = dequantize_each<U8>,
    .each_from_i8 = dequantize_each<I8>,
    .range = range,
    .add = add,
};

}  // namespace headrace::HEADRACE_ISA_NS
