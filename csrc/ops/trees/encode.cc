#include "ops/trees/encode.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <span>
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
std::span<const T> thresholds_of(const Forest& forest) {
  if constexpr (std::is_same_v<T, float>) {
    return forest.thresholds_f32;
  } else {
    return forest.thresholds_f64;
  }
}

template <class T>
std::span<const T> categories_of(const Forest& forest) {
  if constexpr (std::is_same_v<T, float>) {
    return forest.categories_f32;
  } else {
    return forest.categories_f64;
  }
}

// How many of 2^steps - 1 sorted thresholds are below a value.
template <class T>
int32_t rank_of(const T* thresholds, int32_t steps, T value) {
  int32_t rank = 0;
  for (int32_t step = (1 << steps) >> 1; step > 0; step >>= 1) {
    rank += thresholds[rank + step - 1] < value ? step : 0;
  }
  return rank;
}

// The value's category number, given its rank among the categories.
template <class T>
int32_t category_number(const FeatureCodes& feature, const T* categories, int32_t rank, T value) {
  if (std::isnan(value)) return feature.category_nan;
  return categories[rank] == value ? rank + 1 : 0;
}

}  // namespace

template <class T, class Code>
void Encoder<T, Code>::rank_block(const T* thresholds, int32_t steps, int64_t rows, const T* values,
                                  int32_t* ranks) const {
  if constexpr (std::is_same_v<T, float>) {
    kernels_.rank_f32(thresholds, steps, rows, values, ranks);
  } else {
    kernels_.rank_f64(thresholds, steps, rows, values, ranks);
  }
}

// Codes of a block's rows for the sets of one feature.
template <class T, class Code>
void Encoder<T, Code>::encode_sets(const FeatureCodes& feature, int64_t rows, const T* values,
                                   Code* codes) const {
  if (feature.sets_begin == feature.sets_end) return;
  const T* categories = categories_of<T>(forest_).data() + feature.categories;
  int32_t numbers[kBlockRows] = {};
  rank_block(categories, feature.category_steps, rows, values, numbers);
  for (int64_t i = 0; i < rows; ++i) {
    numbers[i] = category_number(feature, categories, numbers[i], values[i]);
  }
  for (int32_t s = feature.sets_begin; s < feature.sets_end; ++s) {
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
  const T* thresholds = thresholds_of<T>(forest_).data();
  T values[kBlockRows] = {};
  int32_t ranks[kBlockRows] = {};
  for (const FeatureCodes& feature : forest_.features) {
    for (int64_t i = 0; i < rows; ++i) {
      values[i] = load_value<T>(table, row + i, feature.feature);
    }
    rank_block(thresholds + feature.thresholds, feature.search_steps, rows, values, ranks);
    auto write = [&](int32_t column, Code nan_code) {
      if (column < 0) return;
      Code* out = codes + static_cast<int64_t>(column) * kBlockRows;
      for (int i = 0; i < kBlockRows; ++i) {
        out[i] = values[i] != values[i] ? nan_code : static_cast<Code>(ranks[i]);
      }
    };
    write(feature.rank_nan_true, 0);
    write(feature.rank_nan_false, kHighest);
    encode_sets(feature, rows, values, codes);
  }
}

// Like encode_block for one row, with the codes side by side.
template <class T, class Code>
void Encoder<T, Code>::encode_row(const FeatureTable& table, int64_t row, Code* codes) const {
  constexpr Code kHighest = std::numeric_limits<Code>::max();
  const T* thresholds = thresholds_of<T>(forest_).data();
  for (const FeatureCodes& feature : forest_.features) {
    T value = load_value<T>(table, row, feature.feature);
    bool nan = std::isnan(value);
    auto code =
        static_cast<Code>(rank_of(thresholds + feature.thresholds, feature.search_steps, value));
    if (feature.rank_nan_true >= 0) codes[feature.rank_nan_true] = nan ? Code{0} : code;
    if (feature.rank_nan_false >= 0) codes[feature.rank_nan_false] = nan ? kHighest : code;
    if (feature.sets_begin == feature.sets_end) continue;
    const T* categories = categories_of<T>(forest_).data() + feature.categories;
    int32_t number = category_number(feature, categories,
                                     rank_of(categories, feature.category_steps, value), value);
    for (int32_t s = feature.sets_begin; s < feature.sets_end; ++s) {
      const SetColumn& set = forest_.sets[static_cast<size_t>(s)];
      uint64_t bit = forest_.set_bits[static_cast<size_t>(set.bits + number / 64)] >> (number % 64);
      codes[set.column] = static_cast<Code>(~bit & 1);
    }
  }
}

template class Encoder<float, uint8_t>;
template class Encoder<float, uint16_t>;
template class Encoder<float, uint32_t>;
template class Encoder<double, uint8_t>;
template class Encoder<double, uint16_t>;
template class Encoder<double, uint32_t>;

}  // namespace headrace
