#include "ops/trees/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace headrace {
namespace {

template <class Source, class T>
T value_at(const FeatureTable& table, int64_t row, int32_t feature) {
  Source value;
  std::memcpy(&value, table.data + (row * table.features + feature) * sizeof(Source),
              sizeof(Source));
  return static_cast<T>(value);
}

// Tables that are compared in float are float; those compared in double may be integers too.
template <class T>
T load_value(const FeatureTable& table, int64_t row, int32_t feature) {
  if constexpr (std::is_same_v<T, double>) {
    switch (table.dtype) {
      case DType::kI32:
        return value_at<int32_t, T>(table, row, feature);
      case DType::kI64:
        return value_at<int64_t, T>(table, row, feature);
      default:
        break;
    }
  }
  return value_at<T, T>(table, row, feature);
}

template <class T>
const T* keys_of(const Forest& forest) {
  if constexpr (std::is_same_v<T, float>) {
    return forest.keys_f32.data();
  } else {
    return forest.keys_f64.data();
  }
}

// The value's category number, given its rank among the categories.
template <class T>
int32_t category_number(const FeatureCodes& feature, const T* categories, int32_t rank, T value) {
  if (std::isnan(value)) return feature.category_nan;
  return categories[rank] == value ? rank + 1 : 0;
}

}  // namespace

template <class T, class Code>
void Encoder<T, Code>::rank(const SortedKeys* sorted, int64_t step, int64_t count, const T* values,
                            int32_t* ranks) const {
  if constexpr (std::is_same_v<T, float>) {
    kernels_.rank_f32(keys_of<T>(forest_), sorted, step, count, values, ranks);
  } else {
    kernels_.rank_f64(keys_of<T>(forest_), sorted, step, count, values, ranks);
  }
}

// Codes of a block's rows for the sets of one feature.
template <class T, class Code>
void Encoder<T, Code>::encode_sets(size_t feature, int64_t rows, const T* values,
                                   Code* codes) const {
  const FeatureCodes& at = forest_.features[feature];
  const SortedKeys& sorted = forest_.categories[feature];
  const T* categories = keys_of<T>(forest_) + sorted.level[sorted.levels - 1];
  int32_t numbers[kBlockRows] = {};
  rank(&sorted, 0, rows, values, numbers);
  for (int64_t i = 0; i < rows; ++i) {
    numbers[i] = category_number(at, categories, numbers[i], values[i]);
  }
  for (int32_t s = at.sets_begin; s < at.sets_end; ++s) {
    const SetColumn& set = forest_.sets[static_cast<size_t>(s)];
    const uint64_t* bits = forest_.set_bits.data() + set.bits;
    Code* out = codes + static_cast<int64_t>(set.column) * kBlockRows;
    if constexpr (sizeof(Code) == 1) {
      kernels_.set_codes_8(bits, numbers, out);
    } else if constexpr (sizeof(Code) == 2) {
      kernels_.set_codes_16(bits, numbers, out);
    } else {
      kernels_.set_codes_32(bits, numbers, out);
    }
  }
}

template <class T, class Code>
void Encoder<T, Code>::encode_block(const FeatureTable& table, int64_t row, int64_t rows,
                                    Code* codes) const {
  constexpr Code kHighest = std::numeric_limits<Code>::max();
  T values[kBlockRows] = {};
  int32_t ranks[kBlockRows] = {};
  for (size_t f = 0; f < forest_.features.size(); ++f) {
    const FeatureCodes& feature = forest_.features[f];
    for (int64_t i = 0; i < rows; ++i) {
      values[i] = load_value<T>(table, row + i, feature.feature);
    }
    rank(&forest_.thresholds[f], 0, rows, values, ranks);
    auto write = [&](int32_t column, Code nan_code) {
      if (column < 0) return;
      Code* out = codes + static_cast<int64_t>(column) * kBlockRows;
      for (int i = 0; i < kBlockRows; ++i) {
        out[i] = values[i] != values[i] ? nan_code : static_cast<Code>(ranks[i]);
      }
    };
    write(feature.rank_nan_true, 0);
    write(feature.rank_nan_false, kHighest);
    if (feature.sets_begin < feature.sets_end) encode_sets(f, rows, values, codes);
  }
}

// Like encode_block for one row, with the codes side by side.
template <class T, class Code>
void Encoder<T, Code>::encode_row(const FeatureTable& table, int64_t row, Code* codes) const {
  for (size_t f = 0; f < forest_.features.size(); f += kBlockRows) {
    size_t count = std::min<size_t>(forest_.features.size() - f, kBlockRows);
    T values[kBlockRows];
    int32_t ranks[kBlockRows];
    for (size_t i = 0; i < count; ++i) {
      values[i] = load_value<T>(table, row, forest_.features[f + i].feature);
    }
    rank(&forest_.thresholds[f], 1, static_cast<int64_t>(count), values, ranks);
    for (size_t i = 0; i < count; ++i) write_codes(f + i, values[i], ranks[i], codes);
  }
}

// Codes of one row's value, whose rank among the thresholds is known.
template <class T, class Code>
void Encoder<T, Code>::write_codes(size_t feature, T value, int32_t rank_of_value,
                                   Code* codes) const {
  constexpr Code kHighest = std::numeric_limits<Code>::max();
  const FeatureCodes& at = forest_.features[feature];
  bool nan = value != value;
  auto code = static_cast<Code>(rank_of_value);
  if (at.rank_nan_true >= 0) codes[at.rank_nan_true] = nan ? Code{0} : code;
  if (at.rank_nan_false >= 0) codes[at.rank_nan_false] = nan ? kHighest : code;
  if (at.sets_begin == at.sets_end) return;
  const SortedKeys& sorted = forest_.categories[feature];
  const T* categories = keys_of<T>(forest_) + sorted.level[sorted.levels - 1];
  int32_t number;
  rank(&sorted, 0, 1, &value, &number);
  number = category_number(at, categories, number, value);
  for (int32_t s = at.sets_begin; s < at.sets_end; ++s) {
    const SetColumn& set = forest_.sets[static_cast<size_t>(s)];
    uint64_t bit = forest_.set_bits[static_cast<size_t>(set.bits + number / 64)] >> (number % 64);
    codes[set.column] = static_cast<Code>(~bit & 1);
  }
}

template class Encoder<float, uint8_t>;
template class Encoder<float, uint16_t>;
template class Encoder<float, uint32_t>;
template class Encoder<double, uint8_t>;
template class Encoder<double, uint16_t>;
template class Encoder<double, uint32_t>;

}  // namespace headrace
