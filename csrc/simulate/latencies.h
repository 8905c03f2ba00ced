// Counts of latencies, fine enough for a p99.9 and small enough to take one every minute of a day.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace headrace {

// Buckets are 1/64 of a power of two wide, at most 1.6% of their value; the bounds come from the
// bits of the double, so counting takes no logarithm.
class Latencies {
 public:
  static constexpr int kPerOctave = 64;
  static constexpr int kOctaves = 32;  // from 2^-20 s, a microsecond, to 2^12 s, over an hour
  static constexpr int kBuckets = kPerOctave * kOctaves;

  void add(double seconds) { ++counts_[static_cast<size_t>(bucket_of(seconds))]; }
  const std::array<int64_t, kBuckets>& counts() const { return counts_; }

  static int bucket_of(double seconds) {
    constexpr auto kFirst = static_cast<int64_t>((1023 - 20) * kPerOctave);
    auto place = static_cast<int64_t>(std::bit_cast<uint64_t>(seconds) >> 46) - kFirst;
    return place < 0 || seconds <= 0 ? 0
           : place >= kBuckets       ? kBuckets - 1
                                     : static_cast<int>(place);
  }
  static double lower_bound(int bucket) {
    auto bits = static_cast<uint64_t>(bucket + (1023 - 20) * kPerOctave) << 46;
    return std::bit_cast<double>(bits);
  }

 private:
  std::array<int64_t, kBuckets> counts_{};
};

}  // namespace headrace
