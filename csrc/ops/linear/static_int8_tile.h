// The register-tiled product of tile.h with the epilogue of static_int8.h.
#pragma once

#include "ops/linear/int8.h"
#include "ops/linear/static_int8_finish.h"
#include "ops/simd/bytes.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <class Kind>
void pack_static_rows(const uint8_t* x, int64_t stride, int64_t rows, int64_t k, ByteZero zero,
                      Word* packed) {
  const int64_t full = kGemmBlockWords * Kind::kPerWord;
  const Vi flip = splat(static_cast<int32_t>(zero.flip));
  for (int64_t begin = 0; begin < k; begin += full) {
    const int64_t count = k - begin < full ? k - begin : full;
    for (int64_t r = 0; r < rows; ++r, packed += kGemmRowStride) {
      const uint8_t* from = x + r * stride + begin;
      if (zero.flip == Kind::kRawFlip) {
        copy_bytes(from, count, reinterpret_cast<uint8_t*>(packed));
        continue;
      }
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        Kind::put(packed, i, U8::load(from + i) ^ flip, zero.zero);
      }
      if (i == count) continue;
      // The lanes beyond meet zeros of B, and a block has room for them.
      uint8_t rest[kLanes] = {};
      for (int64_t j = 0; i + j < count; ++j) rest[j] = from[i + j];
      Kind::put(packed, i, U8::load(rest) ^ flip, zero.zero);
    }
  }
}

template <StaticEnd kEnd>
void finish_static_tile(const StaticBlock& block, const float* out, int64_t out_stride, int64_t row,
                        int64_t rows, int64_t col, int64_t cols) {
  constexpr int64_t kSize = size_of(kEnd);
  constexpr bool kResidual = has_residual(kEnd);
  const StaticFinish f = block.finish;
  for (int64_t j = 0; j < cols; j += kLanes) {
    const Vi offset = load(f.offset + col + j);
    constexpr bool kScales = kEnd != StaticEnd::kSums;
    const Vf factor = kScales ? load(f.factor + col + j) : splat(0.0f);
    const Vf bias = kScales ? load(f.bias + col + j) : splat(0.0f);
    const int64_t n = cols - j;
    auto* y = static_cast<char*>(block.y) + (row * block.y_stride + col + j) * kSize;
    const uint8_t* residual = nullptr;
    if constexpr (kResidual) residual = f.residual + row * f.residual_stride + col + j;
    const float* sums = out + j;
    auto finish_rows = [&](int64_t lanes) __attribute__((always_inline)) {
      for (int64_t r = 0; r < rows; ++r, sums += out_stride, y += block.y_stride * kSize) {
        finish_sums<kEnd>(f, as_int(load(sums)) + offset, factor, bias, residual, y, lanes);
        if constexpr (kResidual) residual += f.residual_stride;
      }
    };
    if (n >= kLanes) {
      finish_rows(kLanes);
    } else {
      finish_rows(n);
    }
  }
}

HR_INLINE void finish_static(const StaticBlock& block, const float* out, int64_t out_stride,
                             int64_t row, int64_t rows, int64_t col, int64_t cols) {
  with_static_end(block.finish, [&](auto end) __attribute__((always_inline)) {
    finish_static_tile<decltype(end)::kEnd>(block, out, out_stride, row, rows, col, cols);
  });
}

HR_INLINE void fetch_static_rows(const StaticBlock& block, int64_t row, int64_t rows, int64_t col) {
  const StaticFinish& f = block.finish;
  const int64_t size = f.floats || f.sums ? 4 : 1;
  const auto* y = static_cast<const char*>(block.y) + (row * block.y_stride + col) * size;
  for (int64_t r = 0; r < rows; ++r, y += block.y_stride * size) __builtin_prefetch(y, 1, 3);
  if (f.residual == nullptr || f.residual == block.y) return;
  const uint8_t* residual = f.residual + row * f.residual_stride + col;
  for (int64_t r = 0; r < rows; ++r, residual += f.residual_stride) {
    __builtin_prefetch(residual, 0, 3);
  }
}

template <class Kind>
void multiply_static(const StaticBlock& block) {
  float out[kTileSize];
  const int64_t panel = block.k * kCols + Kind::kPanelExtra;
  const int64_t blocks_apart = block.rows * kGemmRowStride;
  const int64_t tiles = (block.rows + kTileRows - 1) / kTileRows;
  const int64_t fetched = (kCols + tiles - 1) / tiles;
  const Word* b = block.b;
  int64_t col = 0;
  if (block.rows <= 3) {
    const int panels = panels_of<Kind>(static_cast<int>(block.rows));
    const int64_t wide = panels * kCols;
    for (; block.cols - col >= wide; col += wide, b += panels * panel) {
      kWideTiles<Kind>[block.rows - 1]({block.a, blocks_apart, 0}, b, panel, block.k,
                                       b + panels* panel, kCols, out);
      finish_static(block, out, wide, 0, block.rows, col, wide);
    }
  }
  for (; col < block.cols; col += kCols, b += panel) {
    const int64_t cols = block.cols - col < kCols ? block.cols - col : kCols;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = block.rows * t / tiles;
      const int64_t rows = block.rows * (t + 1) / tiles - row;
      const Word* next = b + panel + panel * t / tiles;
      fetch_static_rows(block, row, rows, col);
      kTiles<Kind>[rows - 1](rows_of_tile(block.a, blocks_apart, row, rows, block.rows), b, panel,
                             block.k, next, fetched, out);
      finish_static(block, out, kCols, row, rows, col, cols);
    }
  }
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
