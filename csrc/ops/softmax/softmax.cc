// Softmax, LogSoftmax and Hardmax over one axis or, before opset 13, over all axes from one on.
#include "ops/softmax/softmax.h"

#include <cmath>

#include "core/strided.h"
#include "core/visit.h"
#include "ops/op.h"
#include "ops/rooms.h"
#include "ops/rows.h"

namespace headrace {
namespace {

// Columns that are worked on together: enough to stream, few enough to share out.
constexpr int64_t kColumnBlock = 256;

// A tensor seen as outer x n x inner, the softmaxes running over n.
struct Geometry {
  int64_t outer, n, inner;
  int64_t column_blocks() const { return (inner + kColumnBlock - 1) / kColumnBlock; }
};

class SoftmaxOp : public Op {
 public:
  explicit SoftmaxOp(const NodeSpec& spec)
      : one_axis_(spec.opset >= 13), axis_(spec.int_or("axis", one_axis_ ? -1 : 1)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    normalize_axis(axis_, inputs[0].shape.rank());
    outputs[0] = inputs[0].shape;
  }
  bool can_overwrite(size_t input) const override { return input == 0; }

  void run(const OpRun& run) const override {
    int64_t elements = run.output(0).elements();
    if (elements == 0) return;
    auto items_of = [&](size_t r) {
      Geometry g = geometry(run.output(0).shape(r));
      return g.n == 0 ? 0 : g.outer * g.column_blocks();
    };
    int64_t items = 0;
    for (size_t r = 0; r < run.requests(); ++r) items += items_of(r);
    for_rows(run, min_rows_of(elements / items, kMinElementsPerThread / 4), items_of,
             [&](size_t r, int64_t begin, int64_t end) {
               apply(run.input(0).view(r), run.output(0).view(r), begin, end);
             });
  }

 protected:
  // `rows` softmaxes, each over n elements that lie next to each other.
  virtual void rows(const void* x, void* y, int64_t offset, int64_t rows, int64_t n) const = 0;
  // `columns` softmaxes, each over n elements that lie `stride` apart.
  virtual void columns(const void* x, void* y, int64_t offset, int64_t n, int64_t stride,
                       int64_t columns) const = 0;

 private:
  Geometry geometry(const Shape& shape) const {
    int rank = shape.rank();
    int axis = normalize_axis(axis_, rank);
    if (!one_axis_) return {shape.elements(0, axis), shape.elements(axis, rank), 1};
    return {shape.elements(0, axis), shape[axis], shape.elements(axis + 1, rank)};
  }

  // Items [begin, end): rows if the axis is the last, else blocks of columns.
  void apply(const ConstTensorView& x, const TensorView& y, int64_t begin, int64_t end) const {
    Geometry g = geometry(y.shape);
    if (g.inner == 1) return rows(x.data, y.data, begin * g.n, end - begin, g.n);
    for (int64_t item = begin; item < end; ++item) {
      int64_t column = item % g.column_blocks() * kColumnBlock;
      int64_t offset = item / g.column_blocks() * g.n * g.inner + column;
      columns(x.data, y.data, offset, g.n, g.inner, std::min(kColumnBlock, g.inner - column));
    }
  }

  bool one_axis_;
  int64_t axis_;
};

class VectorSoftmax final : public SoftmaxOp {
 public:
  VectorSoftmax(const NodeSpec& spec, SoftmaxKernels::Rows rows, SoftmaxKernels::Columns columns)
      : SoftmaxOp(spec), rows_(rows), columns_(columns) {}

 private:
  void rows(const void* x, void* y, int64_t offset, int64_t rows, int64_t n) const override {
    rows_(static_cast<const float*>(x) + offset, static_cast<float*>(y) + offset, rows, n);
  }
  void columns(const void* x, void* y, int64_t offset, int64_t n, int64_t stride,
               int64_t columns) const override {
    columns_(static_cast<const float*>(x) + offset, static_cast<float*>(y) + offset, n, stride,
             columns);
  }

  SoftmaxKernels::Rows rows_;
  SoftmaxKernels::Columns columns_;
};

// One softmax over n elements that lie `stride` apart.
template <class T>
using ScalarSoftmax = void (*)(const T* x, T* y, int64_t n, int64_t stride);

template <class T>
class ScalarSoftmaxOp final : public SoftmaxOp {
 public:
  ScalarSoftmaxOp(const NodeSpec& spec, ScalarSoftmax<T> function)
      : SoftmaxOp(spec), function_(function) {}

 private:
  void rows(const void* x, void* y, int64_t offset, int64_t rows, int64_t n) const override {
    for (int64_t row = 0; row < rows; ++row) {
      function_(static_cast<const T*>(x) + offset + row * n, static_cast<T*>(y) + offset + row * n,
                n, 1);
    }
  }
  void columns(const void* x, void* y, int64_t offset, int64_t n, int64_t stride,
               int64_t columns) const override {
    for (int64_t c = 0; c < columns; ++c) {
      function_(static_cast<const T*>(x) + offset + c, static_cast<T*>(y) + offset + c, n, stride);
    }
  }

  ScalarSoftmax<T> function_;
};

// Not by std::fmax, whose reduction GCC 12 cannot vectorise for aarch64 without an internal error.
// A NaN makes the sum NaN whichever maximum is taken.
template <class T>
double max_of(const T* x, int64_t n, int64_t stride) {
  auto max = static_cast<double>(x[0]);
  for (int64_t i = 1; i < n; ++i) {
    auto value = static_cast<double>(x[i * stride]);
    if (value > max) max = value;
  }
  return max;
}

// In float16 every step rounds, as it does in the function body by which ONNX defines the op.
void softmax(const Half* x, Half* y, int64_t n, int64_t stride) {
  auto max = static_cast<float>(max_of(x, n, stride));
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    y[i * stride] = Half(std::exp(static_cast<float>(Half(x[i * stride] - max))));
    sum += y[i * stride];
  }
  Half total(sum);
  for (int64_t i = 0; i < n; ++i) y[i * stride] = Half(y[i * stride] / total);
}

template <class T>
void softmax(const T* x, T* y, int64_t n, int64_t stride) {
  double max = max_of(x, n, stride);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i * stride]) - max);
  for (int64_t i = 0; i < n; ++i) {
    y[i * stride] = static_cast<T>(std::exp(static_cast<double>(x[i * stride]) - max) / sum);
  }
}

template <class T>
void log_softmax(const T* x, T* y, int64_t n, int64_t stride) {
  double max = max_of(x, n, stride);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i * stride]) - max);
  double log_sum = std::log(sum);
  for (int64_t i = 0; i < n; ++i) {
    y[i * stride] = static_cast<T>(static_cast<double>(x[i * stride]) - max - log_sum);
  }
}

// 1 at the first maximum (or the first NaN, as numpy's argmax has it), 0 elsewhere.
template <class T>
void hardmax(const T* x, T* y, int64_t n, int64_t stride) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i) {
    auto value = static_cast<double>(x[i * stride]);
    auto top = static_cast<double>(x[best * stride]);
    if (!std::isnan(top) && (value > top || std::isnan(value))) best = i;
  }
  for (int64_t i = 0; i < n; ++i) y[i * stride] = static_cast<T>(i == best ? 1.0f : 0.0f);
}

template <class T>
ScalarSoftmax<T> scalar_function(const NodeSpec& spec) {
  if (spec.op == "Softmax") return static_cast<ScalarSoftmax<T>>(softmax);
  if (spec.op == "LogSoftmax") return log_softmax<T>;
  return hardmax<T>;
}

std::unique_ptr<Op> make_softmax(const NodeSpec& spec) {
  const SoftmaxKernels& kernels = HEADRACE_KERNELS(spec.isa, softmax_kernels);
  DType dtype = spec.input_dtypes.at(0);
  if (dtype == DType::kF32 && spec.op == "Softmax") {
    return std::make_unique<VectorSoftmax>(spec, kernels.softmax_rows, kernels.softmax_columns);
  }
  if (dtype == DType::kF32 && spec.op == "LogSoftmax") {
    return std::make_unique<VectorSoftmax>(spec, kernels.log_softmax_rows,
                                           kernels.log_softmax_columns);
  }
  // Rounded as ONNX defines it, step by step, bfloat16's sum would lose most of its terms.
  if (dtype == DType::kBF16 && spec.op == "Softmax") spec.unsupported("no kernel for bfloat16");
  std::unique_ptr<Op> op;
  visit_dtype(Floats{}, dtype, [&]<class T>() {
    op = std::make_unique<ScalarSoftmaxOp<T>>(spec, scalar_function<T>(spec));
  });
  if (!op) spec.unsupported(str("no kernel for ", name_of(dtype)));
  return op;
}

}  // namespace

void register_softmax_ops(OpRegistry& registry) {
  registry.add("Softmax", make_softmax);
  registry.add("LogSoftmax", make_softmax);
  registry.add("Hardmax", make_softmax);
}

}  // namespace headrace
