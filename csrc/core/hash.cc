#include "core/hash.h"

#include <bit>
#include <cstring>

namespace headrace {
namespace {

constexpr int kLanes = 8;  // hides the latency of the multiplication
constexpr size_t kBlockBytes = kLanes * sizeof(uint64_t);

// xxHash64's primes: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4F;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9;

// A bijection of either argument, so that a changed word cannot be forgotten.
constexpr uint64_t mix(uint64_t state, uint64_t word) {
  return std::rotl(state ^ word, 31) * kPrime1;
}

struct State {
  uint64_t lanes[kLanes];

  void add(const std::byte* block) {
    uint64_t words[kLanes];
    std::memcpy(words, block, kBlockBytes);
    for (int i = 0; i < kLanes; ++i) {
      if constexpr (std::endian::native == std::endian::big) {
        words[i] = __builtin_bswap64(words[i]);
      }
      lanes[i] = mix(lanes[i], words[i]);
    }
  }
};

}  // namespace

uint64_t hash_bytes(std::span<const std::byte> bytes) {
  State state;
  for (int i = 0; i < kLanes; ++i) state.lanes[i] = kPrime2 * static_cast<uint64_t>(i + 1);
  size_t whole = bytes.size() / kBlockBytes * kBlockBytes;
  for (size_t at = 0; at < whole; at += kBlockBytes) state.add(bytes.data() + at);
  if (whole < bytes.size()) {
    std::byte last[kBlockBytes] = {};
    std::memcpy(last, bytes.data() + whole, bytes.size() - whole);
    state.add(last);
  }
  uint64_t hash = bytes.size() * kPrime3;  // tells padding from zeros
  for (uint64_t lane : state.lanes) hash = mix(hash, lane) + kPrime2;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace headrace
