// Errors of the CUDA runtime as ours.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace headrace::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fail(ErrorKind::kExecution, "CUDA: ", what, " failed: ", cudaGetErrorName(status), ": ",
       cudaGetErrorString(status));
}

}  // namespace headrace::cuda
