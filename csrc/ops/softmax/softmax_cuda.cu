// Softmax and LogSoftmax: a warp per row. Rows of Requests that have them of one length are one
// block.
#include "cuda/kernel.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"

namespace headrace::cuda {
namespace {

constexpr unsigned kRowsPerBlock = 4;

// A row's n elements lie `inner` apart, as do those of the `inner` rows that begin side by side.
__global__ void softmax_kernel(const float* x, float* y, int64_t rows, int64_t n, int64_t inner,
                               bool log) {
  int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;  // a whole warp
  int64_t begin = row / inner * n * inner + row % inner;
  x += begin;
  y += begin;
  int64_t lane = threadIdx.x % kWarp;
  float max = -__builtin_inff();
  for (int64_t i = lane; i < n; i += kWarp) max = fmaxf(max, x[i * inner]);
  max = warp_max(max);
  float sum = 0;
  for (int64_t i = lane; i < n; i += kWarp) sum += expf(x[i * inner] - max);
  sum = warp_sum(sum);
  if (log) {
    float log_sum = logf(sum);
    for (int64_t i = lane; i < n; i += kWarp) y[i * inner] = x[i * inner] - max - log_sum;
  } else {
    for (int64_t i = lane; i < n; i += kWarp) y[i * inner] = expf(x[i * inner] - max) / sum;
  }
}

class SoftmaxOp final : public CudaOp {
 public:
  explicit SoftmaxOp(bool log, int64_t axis, int64_t opset)
      : log_(log), axis_(axis), opset_(opset) {}

  void run(CudaRun& run) const override {
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    for (size_t r = 0; r < run.requests();) {
      Row row = row_of(y.shape(r));
      int64_t begin = y.offsets[r];
      do ++r;
      while (r < run.requests() && row_of(y.shape(r)) == row);
      int64_t rows = row.n == 0 ? 0 : (y.offsets[r] - begin) / row.n;
      if (rows == 0) continue;
      launch(run.stream(), {blocks_for(rows, kRowsPerBlock), kRowsPerBlock * kWarp}, softmax_kernel,
             run.in<float>(0) + begin, run.out<float>(0) + begin, rows, row.n, row.inner, log_);
    }
  }

 private:
  struct Row {
    int64_t n;
    int64_t inner;
    bool operator==(const Row&) const = default;
  };
  Row row_of(const Shape& shape) const {
    int axis = normalize_axis(axis_, shape.rank());
    // Until opset 13 all dims from the axis on were one.
    if (opset_ < 13) return {shape.elements(axis, shape.rank()), 1};
    return {shape[axis], shape.elements(axis + 1, shape.rank())};
  }

  bool log_;
  int64_t axis_;
  int64_t opset_;
};

std::unique_ptr<CudaOp> make_softmax(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  require_dtype(spec, DType::kF32);
  if (spec.is_constant(0)) spec.unsupported("device cuda: input 0 is a constant");
  int64_t axis = spec.int_or("axis", spec.opset >= 13 ? -1 : 1);
  return std::make_unique<SoftmaxOp>(spec.op == "LogSoftmax", axis, spec.opset);
}

}  // namespace

void register_softmax_cuda(CudaRegistry& registry) {
  registry.add("Softmax", make_softmax);
  registry.add("LogSoftmax", make_softmax);
}

}  // namespace headrace::cuda
