// Products of bfloat16 pairs: 32 multiply-adds an instruction, sums in float. The instruction takes
// subnormal numbers for 0.
#include "ops/linear/bf16_pairs.h"

namespace headrace::avx512_bf16 {
namespace {

struct Bf16Dot {
  using Sum = Vf;
  static constexpr int64_t kPanelExtra = 0;
  HR_INLINE Sum zero() { return splat(0.0f); }
  HR_INLINE Vi broadcast(const Word* a) { return splat(static_cast<int32_t>(*a)); }
  HR_INLINE Vi load(const Word* b) {
    return avx512_bf16::load(reinterpret_cast<const int32_t*>(b));
  }
  HR_INLINE Sum dot(Vi a, Vi b, Sum sum) {
    return {
        _mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};

}  // namespace

extern const GemmKernels gemm_bf16_kernels;
const GemmKernels gemm_bf16_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = kBf16PerWord,
    .panel_extra = Bf16Dot::kPanelExtra,
    .pack_rows = pack_bf16_pairs,
    .pack_bf16_rows = copy_bf16_pairs,
    .pack_panels = pack_bf16_panels,
    .multiply = multiply<Bf16Dot>,
    .finish = finish_products,
};

}  // namespace headrace::avx512_bf16
