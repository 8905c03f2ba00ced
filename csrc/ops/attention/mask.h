// What is added to the scores of a block of keys, and the cap that comes before.
#pragma once

#include "ops/attention/tiles.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2e = 1.44269504f;

// What is added to the scores of `keys` keys, times log2(e).
struct ScoreMask {
  const float* values = nullptr;
  bool per_query = false;  // [keys][vectors of queries], else [keys]
};

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

struct AsTheyAre {
  static constexpr int64_t kPerWord = 1;
  HR_INLINE Vf row(const float* from, int64_t n) { return get(from, n); }
};

// The mask of `n` keys from `first` on for `queries` queries from `query` on, as ScoreMask wants
// it. A mask of zeros is none. `rows` has room for a block of scores.
ScoreMask prepare_mask(const AttentionBlock& b, int64_t query, int64_t queries, int64_t first,
                       int64_t n, int64_t lanes, float* values, float* rows) {
  bool masked = b.mask != nullptr || b.keep != nullptr;
  // Before the diagonal every query sees every key.
  bool diagonal = b.causal && first + n - 1 > b.causal_offset + query;
  if (!masked && !diagonal) return {};
  if (b.mask_q_stride == 0 && !diagonal) {
    mask_row(b, 0, first, n, values);
    return {scale_mask(values, n) ? values : nullptr, false};
  }
  for (int64_t q = 0; q < queries; ++q) {
    float* row = rows + q * kKeyBlock;
    if (masked) {
      mask_row(b, query + q, first, n, row);
    } else {
      for (int64_t k = 0; k < n; ++k) row[k] = 0.0f;
    }
    if (!diagonal) continue;
    int64_t visible = b.causal_offset + query + q + 1 - first;
    for (int64_t k = visible > 0 ? visible : 0; k < n; ++k) row[k] = -kInfinity;
  }
  for (int64_t q = 0; q < lanes; q += kLanes) {
    int64_t left = queries - q < kLanes ? queries - q : kLanes;
    pack_transposed<AsTheyAre>(rows + q * kKeyBlock, kKeyBlock, left, n, values + q, lanes);
  }
  return {scale_mask(values, n * lanes) ? values : nullptr, true};
}

// scores = cap(scores * factor) + mask, all in powers of 2 rather than e; `top` is their maximum.
template <int kVectors>
void adjust_scores(float softcap, float factor, int64_t n, const ScoreMask& mask, float* scores,
                   Vf* top) {
  Vf cap = splat(softcap * kLog2e);
  Vf into_cap = splat(factor / (softcap * kLog2e));
  for (int v = 0; v < kVectors; ++v) top[v] = splat(-kInfinity);
  for (int64_t k = 0; k < n; ++k) {
    for (int v = 0; v < kVectors; ++v) {
      int64_t at = (k * kVectors + v) * kLanes;
      Vf bias = splat(-0.0f);
      if (mask.values != nullptr) {
        bias = mask.per_query ? load(mask.values + at) : splat(mask.values[k]);
      }
      Vf score = load(scores + at);
      score =
          softcap > 0.0f ? cap * tanh(score * into_cap) + bias : fma(score, splat(factor), bias);
      store(scores + at, score);
      top[v] = max(top[v], score);
    }
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
