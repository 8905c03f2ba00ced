// Products of floats, once per ISA, and what stands in for bf16 and int8 where the CPU has no
// instructions for them: floats that hold rounded values, and pairs of 16-bit integers.
#include "ops/linear/static_int8_tile.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

struct FloatDot {
  using Sum = Vf;
  static constexpr int64_t kPanelExtra = 0;
  HR_INLINE Sum zero() { return splat(0.0f); }
  HR_INLINE Vs broadcast(const Word* a) { return load_scalar(reinterpret_cast<const float*>(a)); }
  HR_INLINE Vf load(const Word* b) {
    return HEADRACE_ISA_NS::load(reinterpret_cast<const float*>(b));
  }
  HR_INLINE Sum dot(Vs a, Vf b, Sum sum) { return fma(a, b, sum); }
};

struct AsIs {
  HR_INLINE Vf round(Vf x) { return x; }
};
struct ToBf16 {
  HR_INLINE Vf round(Vf x) { return round_to_bf16(x); }
};

// Rounds `count` floats, of which there are whole vectors.
template <class Rounding>
HR_INLINE void round_all(float* values, int64_t count) {
  if constexpr (__is_same(Rounding, ToBf16)) {
    for (int64_t i = 0; i < count; i += kLanes) store(values + i, ToBf16::round(load(values + i)));
  }
}

template <class Rounding>
void pack_rows(Matrix a, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, 1, words, [&](int64_t r, int64_t begin, int64_t count, Word* to) {
    auto* packed = reinterpret_cast<float*>(to);
    if (a.transposed) {
      const float* from = a.data + begin * a.stride + r;
      for (int64_t i = 0; i < count; ++i) packed[i] = from[i * a.stride];
      // Rows have room for the lanes beyond.
      round_all<Rounding>(packed, count);
      return;
    }
    const float* from = a.data + r * a.stride + begin;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(packed + i, Rounding::round(load(from + i)));
    if (i < count) store(packed + i, Rounding::round(load(from + i, count - i)), count - i);
  });
}

void pack_bf16_rows(const uint16_t* a, int64_t stride, int64_t rows, int64_t k, Word* words) {
  each_packed_row(rows, k, 1, words, [&](int64_t r, int64_t begin, int64_t count, Word* to) {
    auto* packed = reinterpret_cast<float*>(to);
    const uint16_t* from = a + r * stride + begin;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(packed + i, load_bf16(from + i));
    if (i < count) store(packed + i, load_bf16(from + i, count - i), count - i);
  });
}

template <class Rounding>
void pack_panels(Matrix b, int64_t k, int64_t cols, float scale, Word* words) {
  auto* packed = reinterpret_cast<float*>(words);
  for (int64_t col = 0; col < cols; col += kCols, packed += k * kCols) {
    const int64_t count = cols - col < kCols ? cols - col : kCols;
    copy_columns(b, col, count, 0, k, scale, packed);
    round_all<Rounding>(packed, k * kCols);
  }
}

}  // namespace

extern const GemmKernels gemm_kernels;
const GemmKernels gemm_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = 1,
    .panel_extra = FloatDot::kPanelExtra,
    .pack_rows = pack_rows<AsIs>,
    .pack_bf16_rows = pack_bf16_rows,
    .pack_panels = pack_panels<AsIs>,
    .multiply = multiply<FloatDot>,
    .finish = finish_products,
};

extern const GemmKernels gemm_bf16_kernels;
const GemmKernels gemm_bf16_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = 1,
    .panel_extra = FloatDot::kPanelExtra,
    .pack_rows = pack_rows<ToBf16>,
    .pack_bf16_rows = pack_bf16_rows,
    .pack_panels = pack_panels<ToBf16>,
    .multiply = multiply<FloatDot>,
    .finish = finish_products,
};

extern const GemmKernels gemm_int8_kernels;
const GemmKernels gemm_int8_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = Pairs::kPerWord,
    .panel_extra = Pairs::kPanelExtra,
    .pack_rows = pack_int8_rows<Pairs>,
    .pack_bf16_rows = pack_int8_bf16_rows<Pairs>,
    .pack_panels = pack_int8_panels<Pairs>,
    .multiply = multiply<Pairs>,
    .finish = finish_products,
};

extern const StaticKernels static_kernels;
const StaticKernels static_kernels = {
    .tile_rows = kTileRows,
    .panel_cols = static_cast<int>(kCols),
    .k_per_word = Pairs::kPerWord,
    .panel_extra = Pairs::kPanelExtra,
    .raw_flip = Pairs::kRawFlip,
    .holds_zero = false,
    .held_shift = 0,
    .pack_rows = pack_static_rows<Pairs>,
    .pack_panels = pack_int8_panels<Pairs, true>,
    .multiply = multiply_static<Pairs>,
};

}  // namespace headrace::HEADRACE_ISA_NS
