// Attention in blocks of keys, each as two small matrix products with an online softmax between.
//
// Scores are held transposed, a key per row and a query per lane: Q is the operand that is packed
// (once), K is read in place, and the softmax over keys needs no reduction across lanes. The second
// product reads the probabilities as scalars and V in place, and leaves O as the caller wants it.
//
// A query's results depend on its own row, K, V and mask alone: lanes never mix, and blocks of keys
// have a fixed size.
#include "ops/attention/attention.h"

#include "ops/simd/math.h"
#include "ops/simd/transpose.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
constexpr int64_t kMaxVectors = 2;  // of queries in a block, and of columns in a tile of O
constexpr int64_t kKeyBlock = 128;  // its scores fill half an L1 cache
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kTileRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int64_t kTileRows = 6;  // 12 accumulators of 16 registers
#endif
constexpr float kInfinity = __builtin_inff();
constexpr float kLog2e = 1.44269504f;

// to[c * to_stride + r] = from[r * from_stride + c] * scale, with 0 for r from `rows` up to a full
// vector.
HR_INLINE void pack_transposed(const float* from, int64_t from_stride, int64_t rows,
                               int64_t columns, float scale, float* to, int64_t to_stride) {
  Vf factor = splat(scale);
  for (int64_t c = 0; c < columns; c += kLanes) {
    Vf block[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      block[r] = r < rows ? load(from + r * from_stride + c, columns - c) * factor : splat(0.0f);
    }
    transpose(block);
    for (int64_t i = 0; i < kLanes && i < columns - c; ++i)
      store(to + (c + i) * to_stride, block[i]);
  }
}

// What is added to a tile of scores, times log2(e).
struct ScoreMask {
  const float* values = nullptr;
  bool per_query = false;  // [keys][vectors of queries], else [keys]
};

// kRows keys against kVectors vectors of queries. Raises `top` to the scores' maximum.
template <int kRows, int kVectors>
void score_tile(const float* qt, const float* k, int64_t k_stride, int64_t head_dim,
                const ScoreMask& mask, float* scores, Vf* top) {
  Vf acc[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) acc[r][v] = splat(0.0f);
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    Vf q[kVectors];
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) q[v] = load(qt + (d * kVectors + v) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Vs key = load_scalar(k + r * k_stride + d);
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(key, q[v], acc[r][v]);
    }
  }
  if (mask.values != nullptr) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) {
        Vf bias = mask.per_query ? load(mask.values + (r * kVectors + v) * kLanes)
                                 : splat(mask.values[r]);
        acc[r][v] = acc[r][v] + bias;
      }
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      store(scores + (r * kVectors + v) * kLanes, acc[r][v]);
      top[v] = max(top[v], acc[r][v]);
    }
  }
}

// kRows queries' share of O from `keys` keys: o = (o * before + P V) * after, where a null `before`
// stands for 0 and a null `after` for 1. The last of the kVectors vectors has `tail` lanes.
template <int kRows, int kVectors>
void value_tile(const float* p, int64_t p_stride, const float* v, int64_t v_stride, int64_t keys,
                int64_t tail, const float* before, const float* after, float* o, int64_t o_stride) {
  constexpr int kLast = kVectors - 1;
  Vf acc[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kVectors; ++c) {
      acc[r][c] = splat(0.0f);
      if (before != nullptr) {
        const float* at = o + r * o_stride + c * kLanes;
        acc[r][c] = (c == kLast ? load(at, tail) : load(at)) * splat(before[r]);
      }
    }
  }
  for (int64_t k = 0; k < keys; ++k) {
    Vf value[kVectors];
#pragma GCC unroll 12
    for (int c = 0; c < kLast; ++c) value[c] = load(v + k * v_stride + c * kLanes);
    value[kLast] = tail == kLanes ? load(v + k * v_stride + kLast * kLanes)
                                  : load(v + k * v_stride + kLast * kLanes, tail);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Vs probability = load_scalar(p + k * p_stride + r);
#pragma GCC unroll 12
      for (int c = 0; c < kVectors; ++c) acc[r][c] = fma(probability, value[c], acc[r][c]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 12
    for (int c = 0; c < kVectors; ++c) {
      Vf result = after != nullptr ? acc[r][c] * splat(after[r]) : acc[r][c];
      store(o + r * o_stride + c * kLanes, result, c == kLast ? tail : kLanes);
    }
  }
}

using ScoreTile = void (*)(const float*, const float*, int64_t, int64_t, const ScoreMask&, float*,
                           Vf*);
using ValueTile = void (*)(const float*, int64_t, const float*, int64_t, int64_t, int64_t,
                           const float*, const float*, float*, int64_t);

// Tiles by their rows - 1 and vectors - 1.
#if defined(__AVX512F__) || defined(__aarch64__)
#define HR_TILES(tile, n)                                                    \
  {tile<1, n>, tile<2, n>, tile<3, n>, tile<4, n>,  tile<5, n>,  tile<6, n>, \
   tile<7, n>, tile<8, n>, tile<9, n>, tile<10, n>, tile<11, n>, tile<12, n>}
#else
#define HR_TILES(tile, n) {tile<1, n>, tile<2, n>, tile<3, n>, tile<4, n>, tile<5, n>, tile<6, n>}
#endif
constexpr ScoreTile kScoreTiles[kMaxVectors][kTileRows] = {HR_TILES(score_tile, 1),
                                                           HR_TILES(score_tile, 2)};
constexpr ValueTile kValueTiles[kMaxVectors][kTileRows] = {HR_TILES(value_tile, 1),
                                                           HR_TILES(value_tile, 2)};
#undef HR_TILES

// Calls body(first row, rows) for tiles of nearly equal height.
template <class Body>
HR_INLINE void each_tile(int64_t rows, Body body) {
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    int64_t begin = rows * t / tiles;
    body(begin, rows * (t + 1) / tiles - begin);
  }
}

// What the mask adds to the scores of `n` keys from `first` on for one query.
HR_INLINE void mask_row(const AttentionBlock& b, int64_t query, int64_t first, int64_t n,
                        float* to) {
  int64_t step = b.mask_k_stride;
  int64_t at = query * b.mask_q_stride + first * step;
  if (b.keep != nullptr) {
    // 1 - 1 has no bit set, 0 - 1 has all: what is left of them is 0 or -inf. Unlike a choice
    // between the two, compilers turn this into vectors.
    const auto* keep = reinterpret_cast<const unsigned char*>(b.keep) + at;
    auto value = [](unsigned char byte) {
      return __builtin_bit_cast(float, (static_cast<int32_t>(byte) - 1) & int32_t{-0x00800000});
    };
    if (step == 1) {
      for (int64_t k = 0; k < n; ++k) to[k] = value(keep[k]);
    } else {
      for (int64_t k = 0; k < n; ++k) to[k] = value(keep[k * step]);
    }
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = b.mask[at + k * step];
  }
}

// Multiplies n values by log2(e). A finite value stays finite: a mask of -FLT_MAX for all keys
// means a uniform softmax, not an empty one.
HR_INLINE bool scale_mask(float* values, int64_t n) {
  Vf zero = splat(0.0f);
  Vm nonzero = zero < zero;
  for (int64_t i = 0; i < n; i += kLanes) {
    Vf value = load(values + i, n - i);
    Vf scaled = value * splat(kLog2e);
    Vm overflow = (abs(value) < splat(kInfinity)) & (abs(scaled) == splat(kInfinity));
    store(values + i, select(overflow, value, scaled), n - i);
    nonzero = nonzero | is_nan(value) | (zero < abs(value));
  }
  return any(nonzero);
}

// The mask of `n` keys from `first` on as ScoreMask wants it. A mask of zeros is none.
// `rows` holds a block of scores.
ScoreMask prepare_mask(const AttentionBlock& b, int64_t first, int64_t n, int64_t lanes,
                       float* values, float* rows) {
  bool masked = b.mask != nullptr || b.keep != nullptr;
  // Before the diagonal every query sees every key.
  bool diagonal = b.causal && first + n - 1 > b.causal_offset;
  if (!masked && !diagonal) return {};
  if (b.mask_q_stride == 0 && !diagonal) {
    mask_row(b, 0, first, n, values);
    return {scale_mask(values, n) ? values : nullptr, false};
  }
  for (int64_t q = 0; q < b.queries; ++q) {
    float* row = rows + q * kKeyBlock;
    if (masked) {
      mask_row(b, q, first, n, row);
    } else {
      for (int64_t k = 0; k < n; ++k) row[k] = 0.0f;
    }
    if (!diagonal) continue;
    int64_t visible = b.causal_offset + q + 1 - first;
    for (int64_t k = visible > 0 ? visible : 0; k < n; ++k) row[k] = -kInfinity;
  }
  for (int64_t q = 0; q < lanes; q += kLanes) {
    int64_t left = b.queries - q < kLanes ? b.queries - q : kLanes;
    pack_transposed(rows + q * kKeyBlock, kKeyBlock, left, n, 1.0f, values + q, lanes);
  }
  return {scale_mask(values, n * lanes) ? values : nullptr, true};
}

struct Scratch {
  explicit Scratch(float* base, int64_t head_dim) {
    constexpr int64_t kWidth = kMaxVectors * kLanes;
    qt = base;
    scores = qt + head_dim * kWidth;
    mask = scores + kKeyBlock * kWidth;
    correction = mask + kKeyBlock * kWidth;
    inverse = correction + kWidth;
    end = inverse + kWidth;
  }
  float *qt, *scores, *mask, *correction, *inverse, *end;
};

int64_t scratch_floats(int64_t head_dim) {
  return Scratch(nullptr, head_dim).end - static_cast<float*>(nullptr);
}

// Scores to probabilities: subtracts the maximum, exponentiates, sums. Returns per vector what
// earlier keys' sums and outputs must be multiplied by.
template <int kVectors>
HR_INLINE void softmax_block(float* scores, int64_t n, const Vf* top, Vf* maximum, Vf* total,
                             float* correction) {
  Vf base[kVectors];
  Vf added[kVectors];
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    // With every key excluded so far the maximum is -inf, and -inf - -inf would be NaN.
    base[v] = select(top[v] == splat(-kInfinity), splat(0.0f), top[v]);
    added[v] = splat(0.0f);
  }
  for (int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) {
      float* at = scores + (k * kVectors + v) * kLanes;
      Vf e = exp2_nonpositive(load(at) - base[v]);
      store(at, e);
      added[v] = added[v] + e;
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    Vf factor = exp2_nonpositive(maximum[v] - base[v]);
    total[v] = fma(total[v], factor, added[v]);
    maximum[v] = top[v];
    store(correction + v * kLanes, factor);
  }
}

HR_INLINE void add_values(const AttentionBlock& b, const Scratch& s, int64_t first, int64_t n,
                          int64_t lanes, bool last) {
  for (int64_t column = 0; column < b.value_dim; column += kMaxVectors * kLanes) {
    int64_t columns = b.value_dim - column;
    int64_t vectors = columns > kLanes ? kMaxVectors : 1;
    int64_t tail = columns - (vectors - 1) * kLanes;
    if (tail > kLanes) tail = kLanes;
    each_tile(b.queries, [&](int64_t q, int64_t rows) {
      kValueTiles[vectors - 1][rows - 1](
          s.scores + q, lanes, b.v + first * b.v_stride + column, b.v_stride, n, tail,
          first > 0 ? s.correction + q : nullptr, last ? s.inverse + q : nullptr,
          b.o + q * b.o_stride + column, b.o_stride);
    });
  }
}

// Queries that have nothing left of their softmax give 0 where the caller wants that.
void zero_rows(const AttentionBlock& b, const float* total) {
  for (int64_t q = 0; q < b.queries; ++q) {
    bool empty = total == nullptr || total[q] == 0.0f;
    bool nan = total != nullptr && total[q] != total[q];
    if (!empty && !(nan && b.zero_if_nan)) continue;
    for (int64_t d = 0; d < b.value_dim; ++d) b.o[q * b.o_stride + d] = 0.0f;
  }
}

// What a capped block takes instead of score_tile's mask and maximum: the cap comes before the
// mask.
template <int kVectors>
void cap_scores(float softcap, int64_t n, const ScoreMask& mask, float* scores, Vf* top) {
  Vf cap = splat(softcap * kLog2e);
  Vf inverse = splat(1.0f / (softcap * kLog2e));
  for (int64_t k = 0; k < n; ++k) {
    for (int v = 0; v < kVectors; ++v) {
      int64_t at = (k * kVectors + v) * kLanes;
      Vf score = cap * tanh(load(scores + at) * inverse);
      if (mask.values != nullptr) {
        score = score + (mask.per_query ? load(mask.values + at) : splat(mask.values[k]));
      }
      store(scores + at, score);
      top[v] = max(top[v], score);
    }
  }
}

template <int kVectors>
void attend_vectors(const AttentionBlock& b) {
  constexpr int64_t kWidth = kVectors * kLanes;
  Scratch s(b.scratch, b.head_dim);
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    int64_t rows = b.queries - v * kLanes;
    pack_transposed(b.q + v * kLanes * b.q_stride, b.q_stride, rows < kLanes ? rows : kLanes,
                    b.head_dim, b.scale * kLog2e, s.qt + v * kLanes, kWidth);
  }
  Vf maximum[kVectors];
  Vf total[kVectors];
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    maximum[v] = splat(-kInfinity);
    total[v] = splat(0.0f);
  }
  for (int64_t first = 0; first < b.keys; first += kKeyBlock) {
    int64_t n = b.keys - first < kKeyBlock ? b.keys - first : kKeyBlock;
    ScoreMask mask = prepare_mask(b, first, n, kWidth, s.mask, s.scores);
    Vf top[kVectors];
    Vf uncapped[kVectors];  // a maximum that nobody asks for
    for (int v = 0; v < kVectors; ++v) top[v] = uncapped[v] = maximum[v];
    bool capped = b.softcap > 0.0f;
    each_tile(n, [&](int64_t k, int64_t rows) {
      ScoreMask tile_mask = capped ? ScoreMask{} : mask;
      if (tile_mask.values != nullptr) tile_mask.values += mask.per_query ? k * kWidth : k;
      kScoreTiles[kVectors - 1][rows - 1](s.qt, b.k + (first + k) * b.k_stride, b.k_stride,
                                          b.head_dim, tile_mask, s.scores + k * kWidth,
                                          capped ? uncapped : top);
    });
    if (capped) cap_scores<kVectors>(b.softcap, n, mask, s.scores, top);
    softmax_block<kVectors>(s.scores, n, top, maximum, total, s.correction);
    bool last = first + n == b.keys;
    if (last) {
#pragma GCC unroll 12
      for (int v = 0; v < kVectors; ++v) store(s.inverse + v * kLanes, splat(1.0f) / total[v]);
    }
    add_values(b, s, first, n, kWidth, last);
  }
  if (b.keys == 0) return zero_rows(b, nullptr);
  if (b.zero_if_nan || b.zero_if_empty) {
    float totals[kWidth];
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v) store(totals + v * kLanes, total[v]);
    zero_rows(b, totals);
  }
}

void attend(const AttentionBlock& block) {
  if (block.queries > kLanes) return attend_vectors<2>(block);
  attend_vectors<1>(block);
}

}  // namespace

extern const AttentionKernels attention_kernels = {
    .query_block = kMaxVectors * kLanes,
    .scratch_floats = scratch_floats,
    .attend = attend,
};

}  // namespace headrace::HEADRACE_ISA_NS
