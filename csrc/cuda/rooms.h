// The functions through which the rooms under ops/ register their CUDA kernels.
#pragma once

namespace headrace::cuda {

class CudaRegistry;

void register_activation_cuda(CudaRegistry& registry);
void register_attention_cuda(CudaRegistry& registry);
void register_conv_cuda(CudaRegistry& registry);
void register_elementwise_cuda(CudaRegistry& registry);
void register_index_cuda(CudaRegistry& registry);
void register_linear_cuda(CudaRegistry& registry);
void register_norm_cuda(CudaRegistry& registry);
void register_pool_cuda(CudaRegistry& registry);
void register_reduce_cuda(CudaRegistry& registry);
void register_shape_cuda(CudaRegistry& registry);
void register_softmax_cuda(CudaRegistry& registry);
void register_trees_cuda(CudaRegistry& registry);

}  // namespace headrace::cuda
