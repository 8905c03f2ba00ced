// Attention in blocks of keys, each as two small matrix products with an online softmax between.
//
// Scores are held transposed, a key per row and a query per lane, so that the softmax over keys
// needs no reduction across lanes. The second product reads the probabilities as scalars.
//
// A query's results depend on its own row, K, V and mask alone, and on which of its group's queries
// are masked: lanes never mix, and blocks of keys have a fixed size.
#pragma once

#include "ops/attention/mask.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// Up to kWidth queries on their way through the keys.
struct Queries {
  int64_t first;  // in the block
  int64_t count;
  int64_t keys;  // that they look at
  float* packed;
  float* maximum;  // of the scores so far, in powers of 2
  float* total;    // of the probabilities so far, relative to the maximum
  float* sums;     // of probabilities times values so far, whole_vectors(value_dim) apart
};

// How a block's scratch is divided.
template <class Words>
struct Scratch {
  Scratch(float* base, int64_t head_dim, int64_t value_dim)
      : key_stride(HEADRACE_ISA_NS::key_stride<Words>(head_dim)),
        value_stride(whole_vectors(value_dim)) {
    scores = base;
    mask = scores + kKeyBlock * kWidth;
    correction = mask + kKeyBlock * kWidth;
    keys = correction + kWidth;
    values = keys + kKeyBlock * key_stride;
    queries = values + kKeyBlock / Words::kPerWord * value_stride;
    packed_size = key_words<Words>(head_dim) * kWidth;
    queries_size = packed_size + 2 * kWidth + kWidth * value_stride;
    end = queries + kQueryBlock / kWidth * queries_size;
  }
  Queries at(const AttentionBlock& b, int64_t first) const {
    float* own = queries + first / kWidth * queries_size;
    const int64_t count = b.queries - first < kWidth ? b.queries - first : kWidth;
    int64_t seen = b.keys;
    if (b.causal) {
      // Keys beyond the last query's diagonal add nothing.
      const int64_t diagonal = b.causal_offset + first + count;
      seen = diagonal < 0 ? 0 : diagonal < seen ? diagonal : seen;
    }
    return {first,
            count,
            seen,
            own,
            own + packed_size,
            own + packed_size + kWidth,
            own + packed_size + 2 * kWidth};
  }
  int64_t key_stride, value_stride, packed_size, queries_size;
  float *scores, *mask, *correction, *keys, *values, *queries, *end;
};

template <class Words>
int64_t scratch_floats(int64_t head_dim, int64_t value_dim) {
  return Scratch<Words>(nullptr, head_dim, value_dim).end - static_cast<float*>(nullptr);
}

// Brings a block's `ahead` into the L2 cache, some rows per tile of scores: all at once would be
// more than memory gives in that time, and hold up what the tiles read.
class Ahead {
 public:
  explicit Ahead(const AttentionBlock& b) : part_(b.ahead), end_(b.ahead + 4) {
    int64_t rows = 0;
    for (const RowsAhead* part = part_; part < end_; ++part) rows += part->count;
    const int64_t groups = (b.queries + kWidth - 1) / kWidth;
    const int64_t tiles = groups * ((b.keys + kTileRows - 1) / kTileRows);
    per_tile_ = tiles > 0 ? (rows + tiles - 1) / tiles : 0;
  }
  void fetch() {
    for (int64_t n = per_tile_; n > 0 && part_ < end_;) {
      if (row_ == part_->count) {
        ++part_;
        row_ = 0;
        continue;
      }
      const std::byte* at = part_->rows + row_ * part_->stride;
      const std::byte* end = at + part_->row_bytes;
      for (at -= reinterpret_cast<uintptr_t>(at) % 64; at < end; at += 64) {
        __builtin_prefetch(at, 0, 2);
      }
      ++row_;
      --n;
    }
  }

 private:
  const RowsAhead* part_;
  const RowsAhead* end_;
  int64_t row_ = 0;
  int64_t per_tile_;
};

template <class Words>
void pack_queries(const AttentionBlock& b, const Queries& q) {
  const int64_t vectors = q.count > kLanes ? 2 : 1;
  with_rows(b.q, [&](const auto* rows, int64_t stride) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t left = q.count - v * kLanes;
      pack_transposed<Words>(rows + (q.first + v * kLanes) * stride, stride,
                             left < kLanes ? left : kLanes, b.head_dim, q.packed + v * kLanes,
                             vectors * kLanes);
    }
  });
  for (int64_t i = 0; i < kWidth; ++i) {
    q.maximum[i] = -kInfinity;
    q.total[i] = 0.0f;
  }
}

// Scores, of which `top` is the maximum, to words of probabilities: scales, subtracts the maximum
// so far, exponentiates, sums. Writes to `correction` what earlier keys' sums must be multiplied
// by.
template <class Words, int kVectors>
void softmax_block(const Queries& q, float* scores, int64_t n, float factor, const Vf* top,
                   float* correction) {
  Vf base[kVectors];
  Vf added[kVectors];
  const Vf scale = splat(factor);
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    Vf before = load(q.maximum + v * kLanes);
    Vf maximum = max(before, top[v] * scale);
    store(q.maximum + v * kLanes, maximum);
    // With every key excluded so far the maximum is -inf, and -inf - -inf would be NaN.
    base[v] = neg(select(maximum == splat(-kInfinity), splat(0.0f), maximum));
    store(correction + v * kLanes, exp2_nonpositive(before + base[v]));
    added[v] = splat(0.0f);
    // Scores that fill up the last word.
    for (int64_t k = n; k % Words::kPerWord != 0; ++k) {
      store(scores + (k * kVectors + v) * kLanes, splat(-kInfinity));
    }
  }
  float* words = scores;
  for (int64_t k = 0; k < n; k += Words::kPerWord) {
#pragma GCC unroll 12
    for (int v = 0; v < kVectors; ++v, words += kLanes) {
      Vf e[Words::kPerWord];
#pragma GCC unroll 2
      for (int i = 0; i < Words::kPerWord; ++i) {
        Vf score = load(scores + ((k + i) * kVectors + v) * kLanes);
        e[i] = exp2_nonpositive(fma(score, scale, base[v]));
      }
      Vf word = Words::word(e);
      store(words, word);
      added[v] = Words::add(word, added[v]);
    }
  }
#pragma GCC unroll 12
  for (int v = 0; v < kVectors; ++v) {
    store(q.total + v * kLanes,
          fma(load(q.total + v * kLanes), load(correction + v * kLanes), added[v]));
  }
}

// What `n` keys from `first` on, whose packed rows are in the scratch, add to these queries.
template <class Words, int kVectors>
void attend_keys(const AttentionBlock& b, const Scratch<Words>& s, const Queries& q, int64_t first,
                 int64_t n, Ahead& ahead) {
  constexpr int64_t kRow = kVectors * kLanes;
  const ScoreMask mask = prepare_mask(b, q.first, q.count, first, n, kRow, s.mask, s.scores);
  Vf top[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = splat(-kInfinity);
  each_tile(n, [&](int64_t k, int64_t rows) {
    ahead.fetch();
    kScoreTiles<Words>[kVectors - 1][rows - 1](q.packed, s.keys + k* s.key_stride, s.key_stride,
                                               key_words<Words>(b.head_dim), s.scores + k* kRow,
                                               top);
  });
  float factor = b.scale * kLog2e;
  // A maximum of unscaled scores is one of scaled ones only if the scale is positive.
  if (mask.values != nullptr || b.softcap > 0.0f || !(factor > 0.0f)) {
    adjust_scores<kVectors>(b.softcap, factor, n, mask, s.scores, top);
    factor = 1.0f;
  }
  softmax_block<Words, kVectors>(q, s.scores, n, factor, top, s.correction);
  const int64_t words = (n + Words::kPerWord - 1) / Words::kPerWord;
  for (int64_t column = 0; column < s.value_stride; column += kMaxVectors * kLanes) {
    const int64_t vectors = s.value_stride - column > kLanes ? 2 : 1;
    each_tile(q.count, [&](int64_t row, int64_t rows) {
      kValueTiles<Words>[vectors - 1][rows - 1](
          s.scores + row, kRow, s.values + column, s.value_stride, words,
          first > 0 ? s.correction + row : nullptr, q.sums + row* s.value_stride + column);
    });
  }
}

// O = sums / total.
void finish(const AttentionBlock& b, const Queries& q, int64_t value_stride) {
  for (int64_t i = 0; i < q.count; ++i) {
    const float total = q.total[i];
    const bool zero = q.keys == 0 || (total == 0.0f && (b.zero_if_empty || b.zero_if_nan)) ||
                      (total != total && b.zero_if_nan);
    const Vf inverse = splat(1.0f / total);
    const int64_t at = (q.first + i) * b.o_stride;
    for (int64_t c = 0; c < b.value_dim; c += kLanes) {
      const int64_t lanes = b.value_dim - c < kLanes ? b.value_dim - c : kLanes;
      Vf y = zero ? splat(0.0f) : load(q.sums + i * value_stride + c) * inverse;
      if (b.o_bf16) {
        auto* o = static_cast<uint16_t*>(b.o) + at + c;
        if (lanes == kLanes) {
          store_bf16(o, y);
        } else {
          store_bf16(o, y, lanes);
        }
      } else {
        store(static_cast<float*>(b.o) + at + c, y, lanes);
      }
    }
  }
}

template <class Words>
void attend(const AttentionBlock& b) {
  Scratch<Words> s(b.scratch, b.head_dim, b.value_dim);
  Ahead ahead(b);
  for (int64_t q = 0; q < b.queries; q += kWidth) pack_queries<Words>(b, s.at(b, q));
  for (int64_t first = 0; first < b.keys; first += kKeyBlock) {
    const int64_t n = b.keys - first < kKeyBlock ? b.keys - first : kKeyBlock;
    pack_keys<Words>(b.k, first, n, b.head_dim, s.keys);
    pack_values<Words>(b.v, first, n, b.value_dim, s.values);
    for (int64_t at = 0; at < b.queries; at += kWidth) {
      const Queries q = s.at(b, at);
      const int64_t seen = q.keys - first < n ? q.keys - first : n;
      if (seen <= 0) continue;
      if (q.count > kLanes) {
        attend_keys<Words, 2>(b, s, q, first, seen, ahead);
      } else {
        attend_keys<Words, 1>(b, s, q, first, seen, ahead);
      }
    }
  }
  for (int64_t q = 0; q < b.queries; q += kWidth) finish(b, s.at(b, q), s.value_stride);
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
