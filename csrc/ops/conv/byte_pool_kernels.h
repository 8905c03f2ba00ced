// The part of pools of bytes that differs per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

struct BytePoolKernels {
  // The largest of `count` pixels of `channels` bytes each, signed if `flip` is 0x80.
  void (*max_of_pixels)(const uint8_t* const* pixels, int64_t count, int64_t channels, uint8_t flip,
                        uint8_t* y);
};

HEADRACE_DECLARE_KERNELS(BytePoolKernels, byte_pool_kernels)

}  // namespace headrace
