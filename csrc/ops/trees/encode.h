// From feature values to the integer codes that trees compare.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "ops/trees/forest.h"

namespace headrace {

// Rows of one feature table, back to back.
struct FeatureTable {
  DType dtype;  // f32, f64, i32 or i64
  const std::byte* data;
  int64_t rows;
  int64_t features;  // per row
};

// T is the type in which values are compared, Code that of the Forest's codes.
template <class T, class Code>
class Encoder {
 public:
  Encoder(const Forest& forest, const TreeKernels& kernels) : forest_(forest), kernels_(kernels) {}

  // Codes of rows [row, row + rows), at most kBlockRows, as [column][kBlockRows].
  void encode_block(const FeatureTable& table, int64_t row, int64_t rows, Code* codes) const;
  // The same codes of one row, as [column].
  void encode_row(const FeatureTable& table, int64_t row, Code* codes) const;

 private:
  void rank(const SortedKeys* sorted, int64_t step, int64_t count, const T* values,
            int32_t* ranks) const;
  void encode_sets(size_t feature, int64_t rows, const T* values, Code* codes) const;
  void write_codes(size_t feature, T value, int32_t rank_of_value, Code* codes) const;

  const Forest& forest_;
  const TreeKernels& kernels_;
};

}  // namespace headrace
