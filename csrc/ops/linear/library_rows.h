// Rows times a constant matrix by cuBLASLt: what Linear and convolutions of single pixels share.
#pragma once

#include <memory>

#include "cuda/gemm_tile.h"
#include "cuda/op.h"

namespace headrace::cuda {

// A node with inputs X, weight, bias and residual whose output has a row for every row of X.
class LibraryRows {
 public:
  // Null where the node's own kernels are to do it. `shape.bias` is for this to decide. `weight` is
  // [k, cols], in bfloat16 if the shape says so, and `epilogue` lacks but bias and residual.
  static std::unique_ptr<LibraryRows> make(const CudaNode& node, ProductShape shape,
                                           const DeviceMemory& weight, const DeviceMemory& bias,
                                           const TileEpilogue& epilogue);

  void run(CudaRun& run) const;

 private:
  ProductShape shape_{};
  TileEpilogue epilogue_;
  bool whole_ = false;  // the library's product with its bias is all there is to do
  std::unique_ptr<LibraryProduct> product_;
};

}  // namespace headrace::cuda
