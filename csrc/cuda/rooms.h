// The functions through which the rooms under ops/ register their CUDA kernels.
#pragma once

namespace headrace::cuda {

class CudaRegistry;

void register_activation_cuda(CudaRegistry& registry);
void register_elementwise_cuda(CudaRegistry& registry);
void register_norm_cuda(CudaRegistry& registry);
void register_softmax_cuda(CudaRegistry& registry);

}  // namespace headrace::cuda
