// Products of bytes: 16 multiply-adds an instruction.
#include "ops/linear/neon_bytes.h"

namespace headrace::neon_dot {
namespace {

struct BytesDot : NeonBytes {
  HR_INLINE Sum zero() { return splat(int32_t{0}); }
  HR_INLINE int8x8_t broadcast(const Word* a) { return vcreate_s8(*a); }
  HR_INLINE int8x16_t load(const Word* b) { return vreinterpretq_s8_u32(vld1q_u32(b)); }
  HR_INLINE Sum dot(int8x8_t a, int8x16_t b, Sum sum) { return {vdotq_lane_s32(sum.v, b, a, 0)}; }
};

}  // namespace

extern const GemmKernels gemm_int8_kernels;
const GemmKernels gemm_int8_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = BytesDot::kPerWord,
    .panel_extra = BytesDot::kPanelExtra,
    .pack_rows = pack_int8_rows<BytesDot>,
    .pack_bf16_rows = pack_int8_bf16_rows<BytesDot>,
    .pack_panels = pack_int8_panels<BytesDot>,
    .multiply = multiply<BytesDot>,
    .finish = finish_products,
};

extern const StaticKernels static_kernels;
const StaticKernels static_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = BytesDot::kPerWord,
    .panel_extra = BytesDot::kPanelExtra,
    .raw_flip = BytesDot::kRawFlip,
    .holds_zero = true,
    .held_shift = BytesDot::kOffset,
    .pack_rows = pack_static_rows<BytesDot>,
    .pack_panels = pack_int8_panels<BytesDot, true>,
    .multiply = multiply_static<BytesDot>,
};

}  // namespace headrace::neon_dot
