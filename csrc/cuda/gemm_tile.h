// The inner part of matrix products and convolutions: a block computes a tile of 64 x 64 elements
// of C = A * B. A and B say themselves where their elements are, C what becomes of a sum.
//
// An element is one chain over k in order, whatever the number of rows: k is never split.
#pragma once

#include <span>
#include <vector>

#include "core/half.h"
#include "cuda/math.h"
#include "ops/linear/gemm.h"
#include "ops/op.h"

namespace headrace::cuda {

inline constexpr int kTile = 64;

// What happens to a sum on its way to C; see headrace::Epilogue. On the device.
struct TileEpilogue {
  const float* bias = nullptr;  // one per column
  const void* residual = nullptr;
  bool residual_bf16 = false;
  bool residual_first = false;
  Act act = Act::kNone;
  float low = 0;
  float high = 0;

  // `at` is where the residual has the element.
  __device__ float finish(float sum, int64_t col, int64_t at) const {
    if (bias != nullptr) sum += bias[col];
    if (residual == nullptr) return activate(act, sum, low, high);
    float rest = residual_bf16 ? to_float(static_cast<const __nv_bfloat16*>(residual)[at])
                               : static_cast<const float*>(residual)[at];
    if (residual_first) return activate(act, sum + rest, low, high);
    return activate(act, sum, low, high) + rest;
  }
};

// The activation that the node's attributes give.
inline TileEpilogue tile_epilogue_of(const NodeSpec& spec) {
  Epilogue e = epilogue_of(spec);
  static_assert(static_cast<int>(Activation::kClip) == static_cast<int>(Act::kClip));
  return {.act = static_cast<Act>(e.activation), .low = e.clip_min, .high = e.clip_max};
}

// Elements of X or Y: floats, or bfloat16.
__device__ inline float load_element(const void* from, bool bf16, int64_t at) {
  return bf16 ? to_float(static_cast<const __nv_bfloat16*>(from)[at])
              : static_cast<const float*>(from)[at];
}
__device__ inline void store_element(void* to, bool bf16, int64_t at, float value) {
  if (bf16) {
    static_cast<__nv_bfloat16*>(to)[at] = from_float<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(to)[at] = value;
  }
}

// Exact float32: one fused multiply-add after the other. Blocks of kF32Threads.
inline constexpr unsigned kF32Threads = 256;
struct TileF32 {
  static constexpr int kDepth = 16;
  float a[kDepth][kTile + 4];
  float b[kDepth][kTile + 4];
};

// A has row(i), which a thread asks for once, and at(row, k); B has at(k, col), C has put(row, col,
// sum). None is asked for anything outside.
template <class A, class B, class C>
__device__ void multiply_f32(const A& a, const B& b, const C& c, int64_t rows, int64_t cols,
                             int64_t k) {
  constexpr int kDepth = TileF32::kDepth;
  auto& tile = shared_memory<TileF32>();
  int thread = static_cast<int>(threadIdx.x);
  int64_t first_row = int64_t{blockIdx.x} * kTile;
  int64_t first_col = int64_t{blockIdx.y} * kTile;
  // Each thread fetches four elements of A along k, and four of B along the columns.
  int a_row = thread / 4, a_k = thread % 4 * 4;
  int b_k = thread / 16, b_col = thread % 16 * 4;
  bool a_inside = first_row + a_row < rows;
  auto row = a.row(a_inside ? first_row + a_row : 0);
  float sums[4][4] = {};
  for (int64_t depth = 0; depth < k; depth += kDepth) {
    for (int i = 0; i < 4; ++i) {
      bool inside = a_inside && depth + a_k + i < k;
      tile.a[a_k + i][a_row] = inside ? a.at(row, depth + a_k + i) : 0.0f;
    }
    for (int i = 0; i < 4; ++i) {
      bool inside = depth + b_k < k && first_col + b_col + i < cols;
      tile.b[b_k][b_col + i] = inside ? b.at(depth + b_k, first_col + b_col + i) : 0.0f;
    }
    __syncthreads();
    for (int kk = 0; kk < kDepth; ++kk) {
      const float* x = &tile.a[kk][thread / 16 * 4];
      const float* y = &tile.b[kk][thread % 16 * 4];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      int64_t at_row = first_row + thread / 16 * 4 + i;
      int64_t at_col = first_col + thread % 16 * 4 + j;
      if (at_row < rows && at_col < cols) c.put(at_row, at_col, sums[i][j]);
    }
  }
}

// On the tensor cores: both operands rounded to 16 bits, sums in float32. Blocks of kHalfThreads:
// four warps, each with 32 x 32 elements of the tile.
inline constexpr unsigned kHalfThreads = 128;
template <class T>
struct TileHalf {
  static constexpr int kDepth = 32;
  // Rows are 16 bytes longer than they need be, so that neighbours fall into other banks; fragments
  // begin at multiples of 32 bytes.
  static constexpr int kStrideA = kDepth + 8;
  static constexpr int kStrideB = kTile + 8;
  static constexpr int kStrideC = kTile + 4;
  alignas(128) T a[kTile * kStrideA];
  alignas(128) T b[kDepth * kStrideB];
  alignas(128) float c[kTile * kStrideC];
};

template <class T, class A, class B, class C>
__device__ void multiply_half(const A& a, const B& b, const C& c, int64_t rows, int64_t cols,
                              int64_t k) {
  namespace wmma = nvcuda::wmma;
  using Tile = TileHalf<T>;
  constexpr int kDepth = Tile::kDepth;
  auto& tile = shared_memory<Tile>();
  int thread = static_cast<int>(threadIdx.x);
  int64_t first_row = int64_t{blockIdx.x} * kTile;
  int64_t first_col = int64_t{blockIdx.y} * kTile;
  int a_row = thread / 2, a_k = thread % 2 * 16;
  int b_k = thread / 4, b_col = thread % 4 * 16;
  bool a_inside = first_row + a_row < rows;
  auto row = a.row(a_inside ? first_row + a_row : 0);
  int warp_row = thread / 64 * 32, warp_col = thread / 32 % 2 * 32;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) wmma::fill_fragment(sums[i][j], 0.0f);
  }
  for (int64_t depth = 0; depth < k; depth += kDepth) {
    for (int i = 0; i < 16; ++i) {
      bool inside = a_inside && depth + a_k + i < k;
      float x = inside ? a.at(row, depth + a_k + i) : 0.0f;
      tile.a[a_row * Tile::kStrideA + a_k + i] = from_float<T>(x);
    }
    for (int i = 0; i < 16; ++i) {
      bool inside = depth + b_k < k && first_col + b_col + i < cols;
      float y = inside ? b.at(depth + b_k, first_col + b_col + i) : 0.0f;
      tile.b[b_k * Tile::kStrideB + b_col + i] = from_float<T>(y);
    }
    __syncthreads();
    for (int kk = 0; kk < kDepth; kk += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> x[2];
      wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> y[2];
      for (int i = 0; i < 2; ++i) {
        wmma::load_matrix_sync(x[i], &tile.a[(warp_row + 16 * i) * Tile::kStrideA + kk],
                               Tile::kStrideA);
        wmma::load_matrix_sync(y[i], &tile.b[kk * Tile::kStrideB + warp_col + 16 * i],
                               Tile::kStrideB);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) wmma::mma_sync(sums[i][j], x[i], y[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
  // By way of shared memory: which elements a lane has in its fragments is not known.
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      float* to = &tile.c[(warp_row + 16 * i) * Tile::kStrideC + warp_col + 16 * j];
      wmma::store_matrix_sync(to, sums[i][j], Tile::kStrideC, wmma::mem_row_major);
    }
  }
  __syncthreads();
  for (int i = thread; i < kTile * kTile; i += static_cast<int>(kHalfThreads)) {
    int64_t at_row = first_row + i / kTile;
    int64_t at_col = first_col + i % kTile;
    if (at_row >= rows || at_col >= cols) continue;
    c.put(at_row, at_col, tile.c[i / kTile * Tile::kStrideC + i % kTile]);
  }
}

// Blocks for a product of that many rows and columns; z is left for its caller to count products.
inline dim3 tile_grid(int64_t rows, int64_t cols) {
  int64_t most = max_grid_yz() * kTile;
  if (cols > most) {
    fail(ErrorKind::kExecution, "device cuda: got a product of ", cols,
         " columns, expected at most ", most);
  }
  return dim3(blocks_for(rows, kTile), blocks_for(cols, kTile));
}

// Floats as bfloat16, nearest, for weights.
inline std::vector<BFloat16> to_bf16(std::span<const float> from) {
  std::vector<BFloat16> to;
  to.reserve(from.size());
  for (float x : from) to.push_back(BFloat16(x));
  return to;
}

}  // namespace headrace::cuda
