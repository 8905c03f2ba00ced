// Words of four bytes for aarch64's products of bytes: see int8.h. Both operands' bytes are signed
// to those, so A's hold 128 less than they stand for.
#pragma once

#include "ops/linear/static_int8_tile.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

struct NeonBytes {
  using Sum = Vi;
  static constexpr int64_t kPerWord = 4;
  static constexpr int64_t kPanelExtra = 2 * kCols;
  static constexpr int32_t kOffset = 128;
  static constexpr int kRawFlip = 0x80;  // see static_int8.h
  HR_INLINE Vf to_floats(Vi sum, const Word* row, const Word* column) {
    // (q - zero) b = (q - 128) b + (128 - zero) b
    const int32_t offset = kOffset - reinterpret_cast<const RowScale*>(row)->zero;
    const auto* sums = reinterpret_cast<const int32_t*>(column + kCols);
    return int8_result({vmlaq_n_s32(sum.v, vld1q_s32(sums), offset)}, row, column);
  }

  HR_INLINE void put(Word* row, int64_t i, Vi q, int32_t) {
    int16x4_t halves = vmovn_s32((q - splat(kOffset)).v);
    int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    vst1_lane_u32(row + i / kPerWord, vreinterpret_u32_s8(bytes), 0);
  }
  HR_INLINE Vi word(const Vi* q) {
    Vi byte = splat(int32_t{0xff});
    return shift_left<24>(q[3]) | shift_left<16>(q[2] & byte) | shift_left<8>(q[1] & byte) |
           (q[0] & byte);
  }
};

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
