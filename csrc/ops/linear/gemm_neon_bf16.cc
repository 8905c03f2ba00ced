// Products of 2 x 2 blocks: of bfloat16, with sums in float and subnormal numbers taken for 0, 16
// multiply-adds an instruction; of bytes, 32.
#include "ops/linear/bf16_pairs.h"
#include "ops/linear/neon_bytes.h"
#include "ops/linear/tile_matrix.h"

namespace headrace::neon_bf16 {
namespace {

struct Bf16Matrix {
  using Sum = Vf;
  using Block = float32x4_t;
  static constexpr int64_t kPanelExtra = 0;
  HR_INLINE Block no_sums() { return vdupq_n_f32(0.0f); }
  HR_INLINE Block multiply(uint32x4_t rows, uint32x4_t columns, Block sums) {
    return vbfmmlaq_f32(sums, vreinterpretq_bf16_u32(rows), vreinterpretq_bf16_u32(columns));
  }
  HR_INLINE uint64x2_t as_words(Block sums) { return vreinterpretq_u64_f32(sums); }
};

struct ByteMatrix : NeonBytes {
  using Block = int32x4_t;
  HR_INLINE Block no_sums() { return vdupq_n_s32(0); }
  HR_INLINE Block multiply(uint32x4_t rows, uint32x4_t columns, Block sums) {
    return vmmlaq_s32(sums, vreinterpretq_s8_u32(rows), vreinterpretq_s8_u32(columns));
  }
  HR_INLINE uint64x2_t as_words(Block sums) { return vreinterpretq_u64_s32(sums); }
};

void pack_bf16_matrices(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  pack_bf16_panels(b, k, cols, scale, packed);
  pair_words<Bf16Matrix>(packed, (k + kBf16PerWord - 1) / kBf16PerWord, cols);
}

template <bool kExact>
void pack_byte_matrices(Matrix b, int64_t k, int64_t cols, float scale, Word* packed) {
  pack_int8_panels<ByteMatrix, kExact>(b, k, cols, scale, packed);
  pair_words<ByteMatrix>(packed, (k + ByteMatrix::kPerWord - 1) / ByteMatrix::kPerWord, cols);
}

}  // namespace

extern const GemmKernels gemm_bf16_kernels;
const GemmKernels gemm_bf16_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = kBf16PerWord,
    .panel_extra = Bf16Matrix::kPanelExtra,
    .pack_rows = pack_bf16_pairs,
    .pack_bf16_rows = copy_bf16_pairs,
    .pack_panels = pack_bf16_matrices,
    .multiply = multiply<Bf16Matrix>,
    .finish = finish_products,
};

extern const GemmKernels gemm_int8_kernels;
const GemmKernels gemm_int8_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = ByteMatrix::kPerWord,
    .panel_extra = ByteMatrix::kPanelExtra,
    .pack_rows = pack_int8_rows<ByteMatrix>,
    .pack_bf16_rows = pack_int8_bf16_rows<ByteMatrix>,
    .pack_panels = pack_byte_matrices<false>,
    .multiply = multiply<ByteMatrix>,
    .finish = finish_products,
};

extern const StaticKernels static_kernels;
const StaticKernels static_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = ByteMatrix::kPerWord,
    .panel_extra = ByteMatrix::kPanelExtra,
    .raw_flip = ByteMatrix::kRawFlip,
    .holds_zero = true,
    .held_shift = ByteMatrix::kOffset,
    .pack_rows = pack_static_rows<ByteMatrix>,
    .pack_panels = pack_byte_matrices<true>,
    .multiply = multiply_static<ByteMatrix>,
};

}  // namespace headrace::neon_bf16
