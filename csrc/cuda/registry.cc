// Every room's CUDA kernels, in one place and in no static initialiser.
#include "core/error.h"
#include "cuda/op.h"
#include "cuda/rooms.h"

namespace headrace::cuda {

const CudaRegistry& CudaRegistry::global() {
  static const CudaRegistry registry = [] {
    CudaRegistry all;
    register_activation_cuda(all);
    register_attention_cuda(all);
    register_conv_cuda(all);
    register_elementwise_cuda(all);
    register_index_cuda(all);
    register_linear_cuda(all);
    register_norm_cuda(all);
    register_pool_cuda(all);
    register_reduce_cuda(all);
    register_shape_cuda(all);
    register_softmax_cuda(all);
    register_trees_cuda(all);
    return all;
  }();
  return registry;
}

void CudaRegistry::add(std::string_view op, CudaOpFactory factory) {
  if (!factories_.emplace(op, factory).second) {
    throw std::logic_error(str("CUDA op '", op, "' is registered twice; this is a bug"));
  }
}

std::unique_ptr<CudaOp> CudaRegistry::make(const CudaNode& node) const {
  auto it = factories_.find(node.spec.op);
  if (it == factories_.end()) {
    node.spec.unsupported(str("device cuda: op ", node.spec.op, " has no CUDA kernel"));
  }
  return it->second(node);
}

std::vector<std::string> CudaRegistry::names() const {
  std::vector<std::string> names;
  for (const auto& [name, factory] : factories_) names.push_back(name);
  return names;
}

void CudaRun::too_many() {
  fail(ErrorKind::kExecution, "a CUDA op took too many scratch blocks; this is a bug");
}

void require_dtype(const NodeSpec& spec, DType dtype) {
  auto check = [&](DType got, std::string_view what, size_t i) {
    if (got == DType::kNone || got == dtype) return;
    spec.unsupported(str("device cuda: got ", what, " ", i, " of dtype ", name_of(got),
                         ", expected ", name_of(dtype)));
  };
  for (size_t i = 0; i < spec.inputs(); ++i) check(spec.input_dtypes[i], "input", i);
  for (size_t o = 0; o < spec.output_dtypes.size(); ++o) check(spec.output_dtypes[o], "output", o);
}

}  // namespace headrace::cuda
