// From a DType known at run time to a C++ type known at compile time.
#pragma once

#include "core/dtype.h"
#include "core/half.h"

namespace headrace {

template <class... Ts>
struct Types {};

using SignedInts = Types<int8_t, int16_t, int32_t, int64_t>;
using Ints = Types<int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t>;
using Floats = Types<float, double, Half, BFloat16>;
using Numbers = Types<float, double, Half, BFloat16, int8_t, int16_t, int32_t, int64_t, uint8_t,
                      uint16_t, uint32_t, uint64_t>;
using NumbersAndBool = Types<float, double, Half, BFloat16, int8_t, int16_t, int32_t, int64_t,
                             uint8_t, uint16_t, uint32_t, uint64_t, bool>;

// Calls f.template operator()<T>() for the T that holds `dtype`. False if `types` has none.
template <class... Ts, class F>
bool visit_dtype(Types<Ts...>, DType dtype, F&& f) {
  return ((kDTypeOf<Ts> == dtype ? (f.template operator()<Ts>(), true) : false) || ...);
}

// The unsigned type of that many bytes, for ops that move elements and never look at them.
template <class F>
void visit_size(int64_t bytes, F&& f) {
  struct alignas(8) Sixteen {
    uint64_t half[2];
  };
  switch (bytes) {
    case 1:
      return f.template operator()<uint8_t>();
    case 2:
      return f.template operator()<uint16_t>();
    case 4:
      return f.template operator()<uint32_t>();
    case 8:
      return f.template operator()<uint64_t>();
    default:
      return f.template operator()<Sixteen>();
  }
}

// The type to compute in: float for the 16-bit floats, T itself otherwise.
template <class T>
struct ComputeTypeOf {
  using type = T;
};
template <>
struct ComputeTypeOf<Half> {
  using type = float;
};
template <>
struct ComputeTypeOf<BFloat16> {
  using type = float;
};
template <class T>
using ComputeType = typename ComputeTypeOf<T>::type;

}  // namespace headrace
