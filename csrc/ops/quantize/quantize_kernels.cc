#include "ops/quantize/quantize_kernels.h"

#include "ops/simd/narrow.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <class Int>
void quantize(const void* x, void* y, int64_t n, float scale, int32_t zero) {
  const Vf by = splat(scale);
  const Vi offset = splat(zero);
  // Saturating before the zero point is added, where every bound is an exact float.
  const Vf low = splat(static_cast<float>(Int::kLowest - zero));
  const Vf high = splat(static_cast<float>(Int::kHighest - zero));
  convert<F32, Int>(static_cast<const float*>(x), static_cast<typename Int::Element*>(y), n,
                    [=](Vf value) __attribute__((always_inline)) {
                      Vf near = round(value / by);
                      near = select(is_nan(near), splat(0.0f), near);
                      return to_int(min(max(near, low), high)) + offset;
                    });
}

template <class Int>
void dequantize(const void* x, void* y, int64_t n, float scale, int32_t zero) {
  const Vf by = splat(scale);
  const Vi offset = splat(zero);
  convert<Int, F32>(static_cast<const typename Int::Element*>(x), static_cast<float*>(y), n,
                    [=](Vi value)
                        __attribute__((always_inline)) { return to_float(value - offset) * by; });
}

}  // namespace

extern const QuantizeKernels quantize_kernels = {
    .to_u8 = quantize<U8>,
    .to_i8 = quantize<I8>,
    .from_u8 = dequantize<U8>,
    .from_i8 = dequantize<I8>,
};

}  // namespace headrace::HEADRACE_ISA_NS
