// Whether more than one caller wants the Engine.
#pragma once

#include <cstdint>

#include "batcher/job.h"

namespace headrace {

// Remembers the latest caller, and when anybody else last came. Not thread-safe.
class Contention {
 public:
  // Counts an arrival, refused or not. True if another caller came within `kMemory` before it.
  bool came(uint64_t caller, Clock::time_point now) {
    if (caller != latest_) other_came_ = latest_came_;
    latest_ = caller;
    latest_came_ = now;
    return other_came_ != Clock::time_point{} && now - other_came_ < kMemory;
  }

 private:
  static constexpr auto kMemory = std::chrono::seconds(10);

  uint64_t latest_ = 0;
  Clock::time_point latest_came_{};
  Clock::time_point other_came_{};
};

}  // namespace headrace
