#include "ops/conv/byte_pool_kernels.h"

#include <cstddef>

namespace headrace::HEADRACE_ISA_NS {
namespace {

// A cache line, in whatever registers the ISA has.
typedef uint8_t Line __attribute__((vector_size(64)));

void max_of_pixels(const uint8_t* const* pixels, int64_t count, int64_t channels, uint8_t flip,
                   uint8_t* y) {
  int64_t c = 0;
  for (; c + static_cast<int64_t>(sizeof(Line)) <= channels; c += sizeof(Line)) {
    Line most = {};
    for (int64_t i = 0; i < count; ++i) {
      Line x;
      __builtin_memcpy(&x, pixels[i] + c, sizeof(x));
      x ^= flip;
      most = x > most ? x : most;
    }
    most ^= flip;
    __builtin_memcpy(y + c, &most, sizeof(most));
  }
  for (; c < channels; ++c) {
    uint8_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto x = static_cast<uint8_t>(pixels[i][c] ^ flip);
      most = x > most ? x : most;
    }
    y[c] = static_cast<uint8_t>(most ^ flip);
  }
}

}  // namespace

extern const BytePoolKernels byte_pool_kernels;
const BytePoolKernels byte_pool_kernels = {
    .max_of_pixels = max_of_pixels,
};

}  // namespace headrace::HEADRACE_ISA_NS
