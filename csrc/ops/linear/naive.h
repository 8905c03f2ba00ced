// Products of dtypes other than float32, element by element.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/visit.h"

namespace headrace {

// Integers wrap as numpy's do, so they are summed as unsigned ones; 16-bit floats are summed as
// float.
template <class T>
using SumType = std::conditional_t<std::is_integral_v<T>, uint64_t, ComputeType<T>>;

// The sum over k of a[i * a_step] * b[i * b_step].
template <class T>
SumType<T> dot(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t k) {
  SumType<T> sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    sum += static_cast<SumType<T>>(a[i * a_step]) * static_cast<SumType<T>>(b[i * b_step]);
  }
  return sum;
}

}  // namespace headrace
