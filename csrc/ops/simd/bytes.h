// Moving bytes, in runs too short for a call of memcpy to pay.
#pragma once

#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {

// Copies `n` bytes and nothing beyond them. The two must not overlap.
HR_INLINE void copy_bytes(const uint8_t* from, int64_t n, uint8_t* to) {
  constexpr int64_t kBytes = Vi::kLanes * 4;
  auto copy = [&](int64_t at) {
    store(reinterpret_cast<int32_t*>(to + at), load(reinterpret_cast<const int32_t*>(from + at)));
  };
  int64_t i = 0;
  for (; i + kBytes <= n; i += kBytes) copy(i);
  if (i == n) return;
  // The last bytes once more, where there are enough to fill what is copied at a time.
  if (n >= kBytes) return copy(n - kBytes);
  for (int64_t left = n - i; left > 0; left = n - i) {
    if (left >= 32) {
      __builtin_memcpy(to + i, from + i, 32);
      i += 32;
    } else if (left >= 16) {
      __builtin_memcpy(to + i, from + i, 16);
      i += 16;
    } else if (left >= 8) {
      __builtin_memcpy(to + i, from + i, 8);
      i += 8;
    } else if (left >= 4) {
      __builtin_memcpy(to + i, from + i, 4);
      i += 4;
    } else {
      to[i] = from[i];
      ++i;
    }
  }
}

// What the next two may read and write beyond their end.
constexpr int64_t kLooseBytes = Vi::kLanes * 4 > 32 ? Vi::kLanes * 4 : 32;

// Copies `n` bytes, and some beyond. Short runs take no more than they need: stores that reach into
// the next cache line cost twice.
HR_INLINE void copy_bytes_loosely(const uint8_t* from, int64_t n, uint8_t* to) {
  if (n <= 16) {
    __builtin_memcpy(to, from, 16);
    return;
  }
  if (n <= 32) {
    __builtin_memcpy(to, from, 32);
    return;
  }
  for (int64_t i = 0; i < n; i += Vi::kLanes * 4) {
    store(reinterpret_cast<int32_t*>(to + i), load(reinterpret_cast<const int32_t*>(from + i)));
  }
}

// Writes `n` bytes, and some beyond.
HR_INLINE void fill_bytes_loosely(uint8_t value, int64_t n, uint8_t* to) {
  const Vi values = splat(static_cast<int32_t>(value * 0x01010101u));
  for (int64_t i = 0; i < n; i += Vi::kLanes * 4) store(reinterpret_cast<int32_t*>(to + i), values);
}

}  // namespace headrace::HEADRACE_ISA_NS
