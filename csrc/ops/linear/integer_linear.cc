// MatMulInteger with constant weights, which dynamic quantisers write: A's zero point is known only
// when it runs.
#include <algorithm>
#include <vector>

#include "ops/linear/linear.h"
#include "ops/linear/matmul.h"
#include "ops/linear/static_int8.h"

namespace headrace {
namespace {

constexpr int64_t kBlockTiles = 8;
constexpr int64_t kTaskWork = 1 << 19;  // words multiplied worth a task of their own

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// B less its zero points.
class Weights {
 public:
  explicit Weights(const NodeSpec& node) : b_(node.constants[1]) {
    if (node.has_input(3)) zero_ = node.constants[3];
  }
  int32_t at(int64_t i) const {
    int64_t col = zero_.present() && zero_.elements() > 1 ? i % b_.shape[1] : 0;
    return byte(b_, i) - (zero_.present() ? byte(zero_, col) : 0);
  }

 private:
  static int32_t byte(const ConstTensorView& tensor, int64_t i) {
    return tensor.dtype == DType::kI8 ? tensor.as<int8_t>()[i] : tensor.as<uint8_t>()[i];
  }
  ConstTensorView b_;
  ConstTensorView zero_;
};

// True if int8 holds B less its zero points, whatever B is.
bool fits_int8(const NodeSpec& node) {
  bool is_signed = node.input_dtypes[1] == DType::kI8;
  if (!node.has_input(3)) return is_signed;
  std::span<const uint8_t> zeros{node.constants[3].as<uint8_t>(),
                                 static_cast<size_t>(node.constants[3].elements())};
  return std::ranges::all_of(zeros, [&](uint8_t zero) { return zero == (is_signed ? 0 : 128); });
}

class PackedMatMulInteger : public Op {
 public:
  explicit PackedMatMulInteger(const NodeSpec& node)
      : shape_(node.constants[1].shape),
        flip_(node.input_dtypes[0] == DType::kI8 ? 0x80 : 0),
        kernels_(static_kernels_for(node.isa, !fits_int8(node))) {
    int64_t k = shape_[0], cols = shape_[1];
    int64_t size = kernels_.panels(cols) * kernels_.panel_words(k);
    panels_ = node.pack(size * static_cast<int64_t>(sizeof(Word)), [&](std::byte* to) {
      Weights weights(node);
      AlignedWords room = make_aligned_words(std::max<int64_t>(k * cols, 1));
      auto* floats = reinterpret_cast<float*>(room.get());
      for (int64_t i = 0; i < k * cols; ++i) floats[i] = static_cast<float>(weights.at(i));
      kernels_.pack_panels({floats, cols}, k, cols, 1.0f, reinterpret_cast<Word*>(to));
    });
    sums_ = node.pack(padded() * static_cast<int64_t>(sizeof(int32_t)), [&](std::byte* to) {
      Weights weights(node);
      auto* sums = reinterpret_cast<int32_t*>(to);
      std::fill_n(sums, padded(), 0);
      for (int64_t i = 0; i < k * cols; ++i) sums[i % cols] += weights.at(i);
    });
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    infer_matmul(inputs[0].shape, shape_, outputs);
    if (inputs.size() < 3 || !inputs[2].present()) return;
    // One for each row of a matrix, the same in all of A's, or one for each row of A.
    Shape each = inputs[0].shape;
    each[each.rank() - 1] = 1;
    Shape rows{each.rank() > 1 ? each[each.rank() - 2] : 1};
    const Shape& zeros = inputs[2].shape;
    if (inputs[2].elements() != 1 && zeros != rows && zeros != each) {
      fail(ErrorKind::kShapeMismatch, "got a_zero_point of shape ", to_string(zeros),
           ", expected a scalar, ", to_string(rows), " or ", to_string(each));
    }
  }

  void run(const OpRun& run) const override {
    if (shape_[1] == 0) return;
    for (size_t r = 0; r < run.requests(); ++r) {
      int64_t rows = run.output(0).shape(r).elements() / shape_[1];
      ConstTensorView zero;
      if (run.has_input(2)) zero = run.input(2).view(r);
      // A zero point for each row makes each row a product of its own.
      int64_t zeros = zero.present() ? zero.elements() : 1;
      int64_t parts = zeros == 1 ? 1 : rows;
      for (int64_t part = 0; part < parts; ++part) {
        run_rows(run, r, rows / parts * part, rows / parts, zero_at(zero, part % zeros));
        run.release_scratch();
      }
    }
  }
  bool consumes(size_t input) const override { return input == 1; }

 private:
  int64_t padded() const { return kernels_.panels(shape_[1]) * kernels_.panel_cols; }
  // As a uint8.
  int32_t zero_at(const ConstTensorView& zero, int64_t i) const {
    return (zero.present() ? zero.as<uint8_t>()[i] : 0) ^ flip_;
  }
  void run_rows(const OpRun& run, size_t request, int64_t first, int64_t rows, int32_t zero) const;

  Shape shape_;  // of B
  uint8_t flip_;
  const StaticKernels& kernels_;
  Packed panels_;
  Packed sums_;
};

void PackedMatMulInteger::run_rows(const OpRun& run, size_t request, int64_t first, int64_t rows,
                                   int32_t zero) const {
  if (rows == 0) return;
  int64_t k = shape_[0], cols = shape_[1], panels = kernels_.panels(cols);
  auto* offsets = run.scratch_of<int32_t>(padded());
  for (int64_t j = 0; j < padded(); ++j) {
    offsets[j] = -kernels_.held_zero(zero) * sums_.as<int32_t>()[j];
  }
  int64_t work = rows * cols * std::max<int64_t>(kernels_.words(k), 1);
  int64_t wanted =
      run.threads() == 1 ? 1 : std::clamp<int64_t>(work / kTaskWork, 1, 6 * run.threads());
  int64_t blocks = ceil_div(rows, kBlockTiles * kernels_.tile_rows);
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, blocks), 1, panels);
  int64_t size = kernels_.packed_rows_words(ceil_div(rows, blocks), k);
  Word* packed = run.scratch_of<Word>(size * run.threads());
  const auto* a = run.input(0).view(request).as<uint8_t>() + first * k;
  auto* y = run.output(0).view(request).as<int32_t>() + first * cols;
  run.parallel(blocks * ranges, [&](int64_t task, int thread) {
    int64_t row = rows * (task / ranges) / blocks;
    int64_t count = rows * (task / ranges + 1) / blocks - row;
    int64_t panel = panels * (task % ranges) / ranges;
    int64_t panel_end = panels * (task % ranges + 1) / ranges;
    int64_t col = panel * kernels_.panel_cols;
    StaticFinish finish;
    finish.sums = true;
    finish.offset = offsets + col;
    Word* to = packed + thread * size;
    kernels_.pack_rows(a + row * k, k, count, k, {zero, flip_}, to);
    kernels_.multiply({.a = to,
                       .b = panels_.as<Word>() + panel * kernels_.panel_words(k),
                       .rows = count,
                       .k = kernels_.words(k),
                       .cols = std::min(cols, panel_end * kernels_.panel_cols) - col,
                       .y = y + row * cols + col,
                       .y_stride = cols,
                       .finish = finish});
  });
}

}  // namespace

std::unique_ptr<Op> make_packed_matmul_integer(const NodeSpec& node) {
  bool packs = node.is_constant(1) && node.constants[1].shape.rank() == 2 &&
               node.constants[1].shape[0] <= kMaxStaticK &&
               (!node.has_input(3) || node.is_constant(3));
  if (!packs) return nullptr;
  if (node.has_input(3)) {
    int64_t zeros = node.constants[3].elements();
    if (zeros != 1 && zeros != node.constants[1].shape[1]) return nullptr;
  }
  return std::make_unique<PackedMatMulInteger>(node);
}

}  // namespace headrace
