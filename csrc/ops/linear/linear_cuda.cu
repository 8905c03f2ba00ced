// headrace.Linear over the rows of all Requests at once, and MatMul.
#include "cuda/gemm_tile.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/linear/library_rows.h"
#include "ops/linear/matmul.h"

namespace headrace::cuda {
namespace {

// Dense rows of X.
struct Rows {
  const void* x;
  bool bf16;
  int64_t k;
  __device__ int64_t row(int64_t i) const { return i * k; }
  __device__ float at(int64_t row, int64_t i) const { return load_element(x, bf16, row + i); }
};
// A dense matrix.
template <class T>
struct Columns {
  const T* b;
  int64_t cols;
  __device__ float at(int64_t i, int64_t col) const { return to_float(b[i * cols + col]); }
};
struct Output {
  void* y;
  bool bf16;
  int64_t cols;
  TileEpilogue epilogue;
  __device__ void put(int64_t row, int64_t col, float sum) const {
    int64_t at = row * cols + col;
    store_element(y, bf16, at, epilogue.finish(sum, col, at));
  }
};

__global__ void __launch_bounds__(kF32Threads)
    linear_f32_kernel(Rows x, Columns<float> w, Output y, int64_t rows) {
  multiply_f32(x, w, y, rows, y.cols, x.k);
}
__global__ void __launch_bounds__(kHalfThreads)
    linear_bf16_kernel(Rows x, Columns<__nv_bfloat16> w, Output y, int64_t rows) {
  multiply_half<__nv_bfloat16>(x, w, y, rows, y.cols, x.k);
}

struct Product {
  const float* a;
  const float* b;
  float* c;
  int64_t rows, k, cols;
};

__global__ void __launch_bounds__(kF32Threads) matmul_kernel(const Product* products) {
  const Product& p = products[blockIdx.z];
  // The grid is cut for the largest product.
  if (int64_t{blockIdx.x} * kTile >= p.rows || int64_t{blockIdx.y} * kTile >= p.cols) return;
  multiply_f32(Rows{p.a, false, p.k}, Columns<float>{p.b, p.cols}, Output{p.c, false, p.cols, {}},
               p.rows, p.cols, p.k);
}

class LinearOp final : public CudaOp {
 public:
  enum Input : size_t { kX, kWeight, kBias, kResidual };

  explicit LinearOp(const CudaNode& node)
      : bf16_(precision_of(node.spec) == Precision::kBf16),
        k_(node.spec.constants[kWeight].shape[0]),
        cols_(node.spec.constants[kWeight].shape[1]),
        epilogue_(tile_epilogue_of(node.spec)),
        bias_(node.upload_input(kBias)) {
    const ConstTensorView& weight = node.spec.constants[kWeight];
    if (bf16_) {
      std::vector<BFloat16> rounded = to_bf16(weight.span<float>());
      weight_ = node.upload(std::span<const BFloat16>(rounded));
    } else {
      weight_ = node.upload_input(kWeight);
    }
    library_ = LibraryRows::make(node, {k_, cols_, bf16_, false}, weight_, bias_, epilogue_);
  }

  bool reads(size_t input) const override { return input != kWeight && input != kBias; }
  int64_t device_bytes() const override { return weight_.bytes() + bias_.bytes(); }

  void run(CudaRun& run) const override {
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    if (library_ != nullptr) return library_->run(run);
    int64_t rows = y.elements() / cols_;
    Rows x{run.in<void>(kX), run.input(kX).dtype == DType::kBF16, k_};
    Output out{run.out<void>(0), y.dtype == DType::kBF16, cols_, epilogue_};
    out.epilogue.bias = bias_.as<float>();
    out.epilogue.residual = run.in<void>(kResidual);
    dim3 grid = tile_grid(rows, cols_);
    if (bf16_) {
      launch(run.stream(), {grid, kHalfThreads, sizeof(TileHalf<__nv_bfloat16>)},
             linear_bf16_kernel, x, Columns<__nv_bfloat16>{weight_.as<__nv_bfloat16>(), cols_}, out,
             rows);
    } else {
      launch(run.stream(), {grid, kF32Threads, sizeof(TileF32)}, linear_f32_kernel, x,
             Columns<float>{weight_.as<float>(), cols_}, out, rows);
    }
  }

 private:
  bool bf16_;
  int64_t k_;
  int64_t cols_;
  TileEpilogue epilogue_;
  DeviceMemory weight_;
  DeviceMemory bias_;
  std::unique_ptr<LibraryRows> library_;  // if that computes it
};

// Every product of every Request in one launch, if a grid has room for them.
class MatMulOp final : public CudaOp {
 public:
  void run(CudaRun& run) const override {
    if (run.output(0).elements() == 0) return;
    int64_t products = 0;
    int64_t rows = 0;
    int64_t cols = 0;
    auto shape_of = [&](size_t r) {
      return matmul_shape(run.input(0).shape(r), run.input(1).shape(r));
    };
    for (size_t r = 0; r < run.requests(); ++r) {
      MatMulShape shape = shape_of(r);
      products += shape.batch.elements();
      rows = std::max(rows, shape.rows);
      cols = std::max(cols, shape.cols);
    }
    auto table = run.table<Product>(static_cast<size_t>(products));
    Product* next = table.rows.data();
    for (size_t r = 0; r < run.requests(); ++r) {
      MatMulShape shape = shape_of(r);
      for (int64_t i = 0; i < shape.batch.elements(); ++i) *next++ = product(run, r, shape, i);
    }
    run.send(table);
    dim3 grid = tile_grid(rows, cols);
    in_stretches(products, 1, [&](int64_t first, int64_t count) {
      grid.z = static_cast<unsigned>(count);
      launch(run.stream(), {grid, kF32Threads, sizeof(TileF32)}, matmul_kernel,
             table.device + first);
    });
  }

 private:
  static Product product(const CudaRun& run, size_t r, const MatMulShape& shape, int64_t index) {
    Product p{run.in<float>(0, r), run.in<float>(1, r), run.out<float>(0, r), shape.rows, shape.k,
              shape.cols};
    p.c += index * shape.rows * shape.cols;
    for (int axis = shape.batch.rank() - 1; axis >= 0; --axis) {
      int64_t at = index % shape.batch[axis];
      index /= shape.batch[axis];
      p.a += at * shape.a_steps[axis];
      p.b += at * shape.b_steps[axis];
    }
    return p;
  }
};

std::unique_ptr<CudaOp> make_linear(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  if (precision_of(spec) == Precision::kInt8) {
    spec.unsupported("device cuda: precision int8, expected fp32 or bf16");
  }
  if (spec.is_constant(LinearOp::kX) || spec.is_constant(LinearOp::kResidual)) {
    spec.unsupported("device cuda: X or a residual that is constant");
  }
  return std::make_unique<LinearOp>(node);
}

std::unique_ptr<CudaOp> make_matmul(const CudaNode& node) {
  require_dtype(node.spec, DType::kF32);
  if (precision_of(node.spec) != Precision::kF32) {
    node.spec.unsupported("device cuda: MatMul of two results in another precision than fp32");
  }
  return std::make_unique<MatMulOp>();
}

}  // namespace

void register_linear_cuda(CudaRegistry& registry) {
  registry.add("headrace.Linear", make_linear);
  registry.add("MatMul", make_matmul);
}

}  // namespace headrace::cuda
