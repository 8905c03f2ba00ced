// What a .cu includes first: CUDA under nvcc, cuda_on_host.h under any other compiler.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include "cuda/error.h"
#else
#include "cuda/cuda_on_host.h"
#include "cuda/wmma_on_host.h"
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/device.h"

namespace headrace::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// The block's dynamic shared memory as one T: kernels ask for sizeof(T) at launch. A struct of
// arrays, in which sanitizers see the end of each.
template <class T>
__device__ T& shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char headrace_shared[];
  return *reinterpret_cast<T*>(headrace_shared);
#else
  return *reinterpret_cast<T*>(on_host::dynamic_shared);
#endif
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// kernel<<<...>>>(args...) on a stream. Throws Error(kExecution) where the launch is refused; what
// goes wrong while it runs comes out of the stream's synchronize().
template <class... Params, class... Args>
void launch(Stream& stream, const LaunchShape& shape, void (*kernel)(Params...), Args... args) {
#if defined(__CUDACC__)
  // More than 48 KiB has to be asked for.
  if (shape.shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               "cudaFuncSetAttribute");
  }
  kernel<<<shape.grid, shape.block, shape.shared_bytes,
           static_cast<cudaStream_t>(stream.native())>>>(static_cast<Params>(args)...);
  check_cuda(cudaGetLastError(), "a kernel launch");
#else
  on_host::check_launch(shape.grid, shape.block, shape.shared_bytes);
  static_cast<on_host::Queue*>(stream.native())->push([=] {
    on_host::run_grid(shape.grid, shape.block, shape.shared_bytes,
                      [&] { kernel(static_cast<Params>(args)...); });
  });
#endif
}

// Enough blocks of `per_block` for `items`; at least one.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks > 0 ? blocks : 1);
}

// Blocks that a grid has at most in its y and z dimensions.
inline int64_t max_grid_yz() {
#if defined(__CUDACC__)
  return 65535;
#else
  return static_cast<int64_t>(on_host::max_grid_yz);
#endif
}

// Calls f(first, count) for one stretch of 0 .. items - 1 after the other, each as long as a grid's
// y or z dimension can be with `each` blocks per item; one grid does for nearly everything.
template <class F>
void in_stretches(int64_t items, int64_t each, F&& f) {
  int64_t most = std::max<int64_t>(max_grid_yz() / each, 1);
  for (int64_t first = 0; first < items; first += most) f(first, std::min(most, items - first));
}

// Sum and maximum over the 32 lanes of a warp, which all get it. The order is always the same.
__device__ inline float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lanes));
  return x;
}

}  // namespace headrace::cuda
