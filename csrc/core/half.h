// The 16-bit float types as C++ types, for kernels that compute in float and store 16 bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace headrace {

// Nearest float, but with the last bit set wherever something was cut off ("round to odd"). A
// second rounding to fewer bits then gives what one rounding of the double would have given.
inline float round_to_odd(double value) {
  float nearest = static_cast<float>(value);
  double back = static_cast<double>(nearest);
  if (back == value || std::isnan(value) || std::isinf(value)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::isinf(nearest)) return std::bit_cast<float>(bits - 1);
  if (std::abs(back) > std::abs(value)) --bits;
  return std::bit_cast<float>(bits | 1);
}

// IEEE binary16.
struct Half {
  uint16_t bits = 0;

  Half() = default;
  // Nearest, ties to even; overflow gives infinity.
  explicit Half(float value) : bits(encode(std::bit_cast<uint32_t>(value))) {}
  explicit Half(double value) : Half(round_to_odd(value)) {}
  operator float() const {
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    uint32_t exponent = (bits >> 10) & 0x1f;
    uint32_t mantissa = bits & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
      float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
    }
    uint32_t rebased = exponent == 0x1f ? 0xff : exponent + 112;
    return std::bit_cast<float>(sign | (rebased << 23) | (mantissa << 13));
  }

 private:
  static uint16_t encode(uint32_t f) {
    auto sign = static_cast<uint16_t>((f >> 16) & 0x8000);
    uint32_t magnitude = f & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
    if (magnitude < 0x38800000) {                       // subnormal: let the FPU round
      float scaled = std::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000));
    }
    uint32_t odd = (magnitude >> 13) & 1;
    return static_cast<uint16_t>(sign | ((magnitude + 0xfff + odd - 0x38000000) >> 13));
  }
};

// The upper half of a binary32.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  // Nearest, ties to even.
  explicit BFloat16(float value) {
    uint32_t f = std::bit_cast<uint32_t>(value);
    bool nan = (f & 0x7fffffff) > 0x7f800000;
    bits = static_cast<uint16_t>(nan ? (f >> 16) | 0x40 : (f + 0x7fff + ((f >> 16) & 1)) >> 16);
  }
  explicit BFloat16(double value) : BFloat16(round_to_odd(value)) {}
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

static_assert(sizeof(Half) == 2 && sizeof(BFloat16) == 2);

template <>
inline constexpr DType kDTypeOf<Half> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBF16;

}  // namespace headrace
