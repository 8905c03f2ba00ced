// Winograd's transforms of one tile, per ISA; see winograd.cc.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// Points at which F(m x m, 3 x 3) multiplies, along one axis.
inline constexpr int kWinogradPointsMax = 6;

// Where a tile's transformed pixels go: channel c of point p is at
// first + p * point_stride + c / block * block_stride + c % block.
struct PointsLayout {
  float* first;
  int64_t point_stride;
  int64_t block;  // a multiple of every ISA's vectors
  int64_t block_stride;
};

// F(m x m, 3 x 3) for one m: n = m + 2 points along each axis.
struct WinogradTransforms {
  // Of n x n pixels of `channels` channels each.
  void (*input)(const float* const* pixels, int64_t channels, const PointsLayout& to);
  // Point p's `channels` products are at from + p * point_stride; pixel i's m x m sums go to
  // to + i * channels.
  void (*output)(const float* from, int64_t point_stride, int64_t channels, float* to);
};

struct WinogradKernels {
  WinogradTransforms two;   // m = 2
  WinogradTransforms four;  // m = 4
};

HEADRACE_DECLARE_KERNELS(WinogradKernels, winograd_kernels)

}  // namespace headrace
