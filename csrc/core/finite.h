// Whether numbers are all finite, many at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace headrace {

// Bits of the exponent, which are all set in NaN and Inf.
inline constexpr uint16_t kExponentF16 = 0x7C00;
inline constexpr uint16_t kExponentBF16 = 0x7F80;
inline constexpr uint32_t kExponentF32 = 0x7F800000;
inline constexpr uint64_t kExponentF64 = 0x7FF0000000000000;

// `values` may be unaligned. Looks at whole blocks, so that the loop has no way out and is
// vectorised.
template <class Bits>
bool all_finite(const void* values, size_t count, Bits exponent) {
  constexpr size_t kBlock = 1024;
  const char* place = static_cast<const char*>(values);
  for (size_t done = 0; done < count; done += kBlock) {
    size_t block = count - done < kBlock ? count - done : kBlock;
    Bits found = 0;
    for (size_t i = 0; i < block; ++i) {
      Bits bits;
      std::memcpy(&bits, place + (done + i) * sizeof(Bits), sizeof(Bits));
      found |= static_cast<Bits>((bits & exponent) == exponent);
    }
    if (found != 0) return false;
  }
  return true;
}

}  // namespace headrace
