// Products of bytes: 64 multiply-adds an instruction. A's bytes are unsigned to it and hold their
// zero point; the zero point times the column's sum is taken off the result.
#include "ops/linear/static_int8_tile.h"

namespace headrace::avx512_vnni {
namespace {

struct Bytes {
  using Sum = Vi;
  static constexpr int64_t kPerWord = 4;
  static constexpr int64_t kPanelExtra = 2 * kCols;
  static constexpr int kRawFlip = 0;  // see static_int8.h
  HR_INLINE Sum zero() { return splat(int32_t{0}); }
  HR_INLINE Vi broadcast(const Word* a) { return splat(static_cast<int32_t>(*a)); }
  HR_INLINE Vi load(const Word* b) {
    return avx512_vnni::load(reinterpret_cast<const int32_t*>(b));
  }
  HR_INLINE Sum dot(Vi a, Vi b, Sum sum) { return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)}; }
  HR_INLINE Vf to_floats(Vi sum, const Word* row, const Word* column) {
    __m512i zero = _mm512_set1_epi32(reinterpret_cast<const RowScale*>(row)->zero);
    Vi offset = {_mm512_mullo_epi32(zero, load(column + kCols).v)};
    return int8_result(sum - offset, row, column);
  }

  HR_INLINE void put(Word* row, int64_t i, Vi q, int32_t) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(reinterpret_cast<int8_t*>(row) + i),
                     _mm512_cvtepi32_epi8(q.v));
  }
  HR_INLINE Vi word(const Vi* q) {
    Vi byte = splat(int32_t{0xff});
    return shift_left<24>(q[3]) | shift_left<16>(q[2] & byte) | shift_left<8>(q[1] & byte) |
           (q[0] & byte);
  }
};

}  // namespace

extern const GemmKernels gemm_int8_kernels;
const GemmKernels gemm_int8_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = Bytes::kPerWord,
    .panel_extra = Bytes::kPanelExtra,
    .pack_rows = pack_int8_rows<Bytes>,
    .pack_bf16_rows = pack_int8_bf16_rows<Bytes>,
    .pack_panels = pack_int8_panels<Bytes>,
    .multiply = multiply<Bytes>,
    .finish = finish_products,
};

extern const StaticKernels static_kernels;
const StaticKernels static_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = Bytes::kPerWord,
    .panel_extra = Bytes::kPanelExtra,
    .raw_flip = Bytes::kRawFlip,
    .holds_zero = true,
    .held_shift = 0,
    .pack_rows = pack_static_rows<Bytes>,
    .pack_panels = pack_int8_panels<Bytes, true>,
    .multiply = multiply_static<Bytes>,
};

}  // namespace headrace::avx512_vnni
