// Convolutions of bytes with one kernel per channel, for every ISA.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "ops/conv/window.h"
#include "ops/linear/static_int8.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// One row of Y's pixels under one kernel per channel.
struct ByteDepthwiseRow {
  const uint8_t* x;          // the image
  const std::byte* weights;  // packed
  const uint8_t* paddings;   // as many as there are channels
  void* y;                   // the row's first pixel, bytes or floats
  int64_t channels;
  const Windows* windows;
  int64_t depth, height;    // of the row
  const uint8_t** sources;  // room for kByteDepthwisePixels pointers per tap
  uint8_t flip;             // of X
  StaticFinish finish;      // at the row's first pixel
};
inline constexpr int64_t kByteDepthwisePixels = 4;
// Taps whose sum is exact in a float.
inline constexpr int64_t kByteDepthwiseTapsMax = 256;

struct ByteDepthwiseKernels {
  int64_t (*packed_bytes)(int64_t taps, int64_t channels);
  // `weights` are [channels, taps], integers.
  void (*pack)(const float* weights, int64_t taps, int64_t channels, std::byte* packed);
  void (*run)(const ByteDepthwiseRow& row);
};

// The fastest kernels for weights of int8; `wide` ones take weights from -255 to 255.
const ByteDepthwiseKernels& byte_depthwise_for(Isa isa, bool wide);

}  // namespace headrace
