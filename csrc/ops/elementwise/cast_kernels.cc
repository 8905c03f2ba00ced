#include "ops/elementwise/cast_kernels.h"

#include "ops/simd/narrow.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <class From, class To>
void cast(const LoopArgs& args) {
  const auto* x = static_cast<const typename From::Element*>(args.in[0]);
  auto* y = static_cast<typename To::Element*>(args.out);
  auto same = [](Vf a) __attribute__((always_inline)) { return a; };
  if (args.step[0] == 1) return convert<From, To>(x, y, args.n, same);
  for (int64_t i = 0; i < args.n; ++i) convert<From, To>(x + i * args.step[0], y + i, 1, same);
}

}  // namespace

extern const CastKernels cast_kernels = {
#if defined(HEADRACE_HAS_F16)
    .f32_to_f16 = cast<F32, F16>,
    .f16_to_f32 = cast<F16, F32>,
#else
    .f32_to_f16 = nullptr,
    .f16_to_f32 = nullptr,
#endif
    .f32_to_bf16 = cast<F32, BF16>,
    .bf16_to_f32 = cast<BF16, F32>,
};

}  // namespace headrace::HEADRACE_ISA_NS
