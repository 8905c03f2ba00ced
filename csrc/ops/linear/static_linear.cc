// headrace.QuantizedLinear(X, W, scales, bias?, residual?): rows of bytes times a constant matrix
// of integers, as static_int8.h computes it. W is [K, N], less its zero points: int8, or int16
// where these are up to 255 away from 0; `scales` has one number per column.
#include <algorithm>
#include <vector>

#include "ops/linear/linear.h"
#include "ops/linear/static_int8.h"

namespace headrace {
namespace {

// Words multiplied worth a task of their own, tasks per thread, and rows that take as long as
// fewer; see gemm.cc.
constexpr int64_t kTaskWork = 1 << 19;
constexpr int64_t kTasksPerThread = 6;
constexpr int64_t kWaitingRows = 3;
// Rows that are packed at a time.
constexpr int64_t kBlockTiles = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

class QuantizedLinear : public Op {
 public:
  explicit QuantizedLinear(const NodeSpec& node);

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override { return input == kResidual && overwrites_; }
  bool row_wise() const override { return !own_rows_; }
  bool consumes(size_t input) const override { return input >= kWeight && input <= kBias; }

 private:
  enum Input : size_t { kX, kWeight, kScales, kBias, kResidual };
  void pack(const NodeSpec& node);
  void run_rows(const OpRun& run, size_t first, int64_t rows) const;

  StaticQuantization quantization_;
  const StaticKernels& kernels_;
  bool overwrites_;
  bool own_rows_;  // the residual is a constant, of which each row of Y has its own
  int64_t k_ = 0;
  int64_t cols_ = 0;
  int64_t panels_ = 0;
  Packed packed_;
  Packed columns_;
};

const StaticKernels& kernels_of(const NodeSpec& node, size_t weight) {
  if (!node.is_constant(weight)) node.unsupported("the weights must be constant");
  DType dtype = node.constants[weight].dtype;
  if (dtype != DType::kI8 && dtype != DType::kI16) {
    node.unsupported(str("got weights of dtype ", name_of(dtype), ", expected int8 or int16"));
  }
  return static_kernels_for(node.isa, dtype == DType::kI16);
}

QuantizedLinear::QuantizedLinear(const NodeSpec& node)
    : quantization_(node, kResidual),
      kernels_(kernels_of(node, kWeight)),
      own_rows_(node.is_constant(kResidual)) {
  overwrites_ =
      quantization_.has_residual() && node.input_dtypes[kResidual] == node.output_dtypes[0];
  const Shape& shape = node.constants[kWeight].shape;
  if (shape.rank() != 2 || shape[0] > kMaxStaticK) {
    node.unsupported(
        str("got weights of shape ", to_string(shape), ", expected [up to ", kMaxStaticK, ", N]"));
  }
  k_ = shape[0];
  cols_ = shape[1];
  panels_ = kernels_.panels(cols_);
  bool fits = node.is_constant(kScales) && node.constants[kScales].shape == Shape{cols_} &&
              (!node.has_input(kBias) ||
               (node.is_constant(kBias) && node.constants[kBias].shape == Shape{cols_}));
  if (!fits) node.invalid(str("expected constant scales and bias of shape [", cols_, "]"));
  pack(node);
}

void QuantizedLinear::pack(const NodeSpec& node) {
  const ConstTensorView& weight = node.constants[kWeight];
  auto at = [&](int64_t i) -> int32_t {
    return weight.dtype == DType::kI8 ? weight.as<int8_t>()[i] : weight.as<int16_t>()[i];
  };
  packed_ = node.pack(
      panels_ * kernels_.panel_words(k_) * static_cast<int64_t>(sizeof(Word)), [&](std::byte* to) {
        AlignedWords room = make_aligned_words(std::max<int64_t>(k_ * cols_, 1));
        auto* floats = reinterpret_cast<float*>(room.get());
        for (int64_t i = 0; i < k_ * cols_; ++i) floats[i] = static_cast<float>(at(i));
        kernels_.pack_panels({floats, cols_}, k_, cols_, 1.0f, reinterpret_cast<Word*>(to));
      });
  int64_t padded = panels_ * kernels_.panel_cols;
  columns_ = node.pack(StaticQuantization::column_bytes(padded), [&](std::byte* to) {
    std::vector<int32_t> sums(static_cast<size_t>(cols_));
    for (int64_t i = 0; i < k_ * cols_; ++i) sums[static_cast<size_t>(i % cols_)] += at(i);
    ConstTensorView bias = node.has_input(kBias) ? node.constants[kBias] : ConstTensorView{};
    StaticColumns columns{.sums = sums.data(),
                          .scales = node.constants[kScales].as<float>(),
                          .bias = bias,
                          .count = cols_,
                          .group = cols_,
                          .group_padded = padded};
    quantization_.write_columns(kernels_.held_zero(quantization_.x().zero), columns, to);
  });
}

void QuantizedLinear::infer(InputViews inputs, std::span<Shape> outputs) const {
  const Shape& x = inputs[kX].shape;
  if (x.rank() == 0 || x[x.rank() - 1] != k_) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected a last dim of ",
         k_);
  }
  outputs[0] = x;
  outputs[0][x.rank() - 1] = cols_;
  if (quantization_.has_residual() && inputs[kResidual].shape != outputs[0]) {
    fail(ErrorKind::kShapeMismatch, "got a residual of shape ", to_string(inputs[kResidual].shape),
         ", expected the output's, ", to_string(outputs[0]));
  }
}

void QuantizedLinear::run(const OpRun& run) const {
  const Segments& y = run.output(0);
  if (cols_ == 0) return;
  // A constant operand has one segment for all Requests, which breaks the run of rows.
  bool apart =
      run.input(kX).shared || (quantization_.has_residual() && run.input(kResidual).shared);
  if (!apart) return run_rows(run, 0, y.elements() / cols_);
  for (size_t r = 0; r < run.requests(); ++r) run_rows(run, r, y.shape(r).elements() / cols_);
}

// `rows` rows from Request `first` on.
void QuantizedLinear::run_rows(const OpRun& run, size_t first, int64_t rows) const {
  if (rows == 0) return;
  int64_t work = std::max(rows, kWaitingRows) * cols_ * std::max<int64_t>(kernels_.words(k_), 1);
  int64_t wanted = 1;
  if (run.threads() > 1 && work >= 2 * kTaskWork) {
    wanted = std::min(ceil_div(work / kTaskWork, run.threads()), kTasksPerThread) * run.threads();
  }
  int64_t row_blocks =
      std::max(ceil_div(rows, kBlockTiles * kernels_.tile_rows), ceil_div(wanted, panels_));
  row_blocks = std::min(row_blocks, ceil_div(rows, kernels_.tile_rows));
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, row_blocks), 1, panels_);
  StaticFinish finish = quantization_.finish();
  StaticQuantization::point_at_columns(columns_.as<std::byte>(), panels_ * kernels_.panel_cols,
                                       &finish);
  const auto* x = run.input(kX).view(first).as<uint8_t>();
  auto* y = static_cast<std::byte*>(run.output(0).view(first).data);
  if (quantization_.has_residual()) {
    finish.residual = run.input(kResidual).view(first).as<uint8_t>();
    finish.residual_stride = cols_;
  }
  int64_t packed_size = kernels_.packed_rows_words(ceil_div(rows, row_blocks), k_);
  Word* packed = run.scratch_of<Word>(packed_size * run.threads());
  run.parallel(row_blocks * ranges, [&](int64_t index, int thread) {
    int64_t row = rows * (index / ranges) / row_blocks;
    int64_t row_end = rows * (index / ranges + 1) / row_blocks;
    int64_t panel = panels_ * (index % ranges) / ranges;
    int64_t panel_end = panels_ * (index % ranges + 1) / ranges;
    int64_t col = panel * kernels_.panel_cols;
    Word* a = packed + thread * packed_size;
    kernels_.pack_rows(x + row * k_, k_, row_end - row, k_, quantization_.x(), a);
    kernels_.multiply({.a = a,
                       .b = packed_.as<Word>() + panel * kernels_.panel_words(k_),
                       .rows = row_end - row,
                       .k = kernels_.words(k_),
                       .cols = std::min(cols_, panel_end * kernels_.panel_cols) - col,
                       .y = y + (row * cols_ + col) * (finish.floats ? 4 : 1),
                       .y_stride = cols_,
                       .finish = finish.at(row, col)});
  });
  run.release_scratch();
}

}  // namespace

std::unique_ptr<Op> make_quantized_linear(const NodeSpec& node) {
  return std::make_unique<QuantizedLinear>(node);
}

}  // namespace headrace
