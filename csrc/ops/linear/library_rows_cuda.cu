#include "cuda/ragged.h"
#include "ops/linear/library_rows.h"

namespace headrace::cuda {
namespace {

enum Input : size_t { kX, kWeight, kBias, kResidual };

// What the library leaves to do: operands of its type before, the epilogue after.
__global__ void round_kernel(const void* from, bool from_bf16, void* to, bool to_bf16,
                             int64_t count) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    store_element(to, to_bf16, i, load_element(from, from_bf16, i));
  }
}
// `sums` may be Y.
__global__ void epilogue_kernel(const float* sums, void* y, bool y_bf16, TileEpilogue epilogue,
                                int64_t cols, int64_t count) {
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    store_element(y, y_bf16, i, epilogue.finish(sums[i], i % cols, i));
  }
}

}  // namespace

std::unique_ptr<LibraryRows> LibraryRows::make(const CudaNode& node, ProductShape shape,
                                               const DeviceMemory& weight, const DeviceMemory& bias,
                                               const TileEpilogue& epilogue) {
  auto rows = std::make_unique<LibraryRows>();
  rows->whole_ = epilogue.act == Act::kNone && !node.spec.has_input(kResidual) &&
                 node.spec.output_dtypes[0] == DType::kF32;
  shape.bias = rows->whole_ && bias.bytes() > 0;
  rows->product_ = node.products.make(shape, weight.data(), bias.as<float>());
  if (rows->product_ == nullptr) return nullptr;
  rows->shape_ = shape;
  rows->epilogue_ = epilogue;
  rows->epilogue_.bias = bias.as<float>();
  return rows;
}

void LibraryRows::run(CudaRun& run) const {
  Stream& stream = run.stream();
  int64_t count = run.output(0).elements();
  int64_t rows = count / shape_.cols;
  const void* x = run.in<void>(kX);
  bool x_bf16 = run.input(kX).dtype == DType::kBF16;
  if (x_bf16 != shape_.bf16) {
    int64_t elements = rows * shape_.k;
    void* rounded = run.scratch(elements * size_of(shape_.bf16 ? DType::kBF16 : DType::kF32));
    launch(stream, loop_shape(elements), round_kernel, x, x_bf16, rounded, shape_.bf16, elements);
    x = rounded;
  }
  bool y_bf16 = run.output(0).dtype == DType::kBF16;
  void* y = run.out<void>(0);
  auto* sums = static_cast<float*>(y_bf16 ? run.scratch(count * size_of(DType::kF32)) : y);
  product_->run(stream, x, sums, rows);
  if (whole_) return;
  TileEpilogue epilogue = epilogue_;
  epilogue.residual = run.in<void>(kResidual);
  epilogue.residual_bf16 =
      epilogue.residual != nullptr && run.input(kResidual).dtype == DType::kBF16;
  launch(stream, loop_shape(count), epilogue_kernel, sums, y, y_bf16, epilogue, shape_.cols, count);
}

}  // namespace headrace::cuda
