// Matrix products of 8-bit integers whose scales and zero points the Model itself gives: static
// quantisation, as QuantizeLinear and DequantizeLinear around an op spell it.
//
// X stays in bytes from op to op. A sum of products is exact in 32 bits; from there
//
//   y = (sum + offset) * factor + bias            each rounded to float, in steps of Y's scale
//
// per column, then the residual, the bounds of Y and of the activation, and rounding to nearest,
// ties to even. It gives the same bits on every ISA. The layout of operands is gemm.h's.
//
// int8 tensors are taken as uint8 with 128 more, zero point included: `flip` is what their bytes
// are xor-ed with, 0x80 or 0.
#pragma once

#include "ops/linear/gemm.h"

namespace headrace {

// A tensor's zero point as a uint8, and what its bytes are flipped by.
struct ByteZero {
  int32_t zero = 0;
  uint8_t flip = 0;
};

// What a node's attributes <prefix>_scale and <prefix>_zero_point say of a tensor of bytes.
struct StaticTensor {
  double scale = 1.0;
  ByteZero byte;

  StaticTensor() = default;
  // Throws Error(kUnsupportedOp | kInvalidModel).
  StaticTensor(const NodeSpec& node, std::string_view prefix, DType dtype);
};

// Bounds in steps from a tensor's zero point.
struct StaticBounds {
  float low = 0.0f;
  float high = 0.0f;
};
// What a byte of `y` holds, within the bounds of the node's activation: none, relu or clip.
StaticBounds static_bounds(const NodeSpec& node, const StaticTensor& y);

// What becomes of a sum.
struct StaticFinish {
  // Per column, whole panels of them.
  const int32_t* offset = nullptr;
  const float* factor = nullptr;
  const float* bias = nullptr;
  // Bounds of the result, in steps from Y's zero point.
  float low = 0.0f;
  float high = 0.0f;
  ByteZero y;
  bool floats = false;  // Y is float32: neither rounded nor moved to a zero point
  bool sums = false;    // Y is int32: sum + offset, and nothing else
  // The product itself is rounded, in a scale of its own, before the residual is added.
  bool rounds_product = false;
  float product_low = 0.0f;
  float product_high = 0.0f;
  float product_factor = 0.0f;  // to Y's steps
  // Bytes of Y's shape; may be Y itself. Only where Y is bytes.
  const uint8_t* residual = nullptr;
  int64_t residual_stride = 0;
  ByteZero residual_zero;
  float residual_factor = 0.0f;

  // The same from Y's element (row, col) on.
  StaticFinish at(int64_t row, int64_t col) const {
    StaticFinish moved = *this;
    moved.offset += col;
    moved.factor += col;
    moved.bias += col;
    if (residual) moved.residual += row * residual_stride + col;
    return moved;
  }
};

struct StaticBlock {
  const Word* a = nullptr;
  const Word* b = nullptr;  // first panel
  int64_t rows = 0;
  int64_t k = 0;         // words
  int64_t cols = 0;      // of Y, from the first panel's first column
  void* y = nullptr;     // bytes, floats or int32
  int64_t y_stride = 0;  // elements
  StaticFinish finish;   // at Y's first element
};

struct StaticKernels {
  int tile_rows;
  int panel_cols;
  int k_per_word;
  int64_t panel_extra;
  // Packed rows are X's bytes as they are where these are flipped by this; -1: never.
  int raw_flip;
  // The packed bytes hold x - `held_shift`, and with it the zero point; or x less its zero point.
  bool holds_zero;
  int32_t held_shift;
  // Packs `rows` x `k` bytes.
  void (*pack_rows)(const uint8_t* x, int64_t stride, int64_t rows, int64_t k, ByteZero zero,
                    Word* packed);
  // Packs the panels of columns [0, cols). B's floats are integers from -127 to 127, or to 255 for
  // wide kernels.
  void (*pack_panels)(Matrix b, int64_t k, int64_t cols, float scale, Word* packed);
  void (*multiply)(const StaticBlock& block);

  int64_t words(int64_t k) const { return (k + k_per_word - 1) / k_per_word; }
  int64_t panels(int64_t cols) const { return (cols + panel_cols - 1) / panel_cols; }
  int64_t panel_words(int64_t k) const { return words(k) * panel_cols + panel_extra; }
  int64_t packed_rows_words(int64_t rows, int64_t k) const {
    int64_t blocks = (words(k) + kGemmBlockWords - 1) / kGemmBlockWords;
    return (blocks > 0 ? blocks : 1) * rows * kGemmRowStride;
  }
  // What is left of X's zero point in packed rows, to be taken off their products.
  int32_t held_zero(int32_t zero) const { return holds_zero ? zero - held_shift : 0; }
};

// The fastest kernels for weights of int8; `wide` ones take weights from -255 to 255.
const StaticKernels& static_kernels_for(Isa isa, bool wide);
// Inputs whose products, of 255 by 255 at most, and a bias do not outgrow 32 bits.
inline constexpr int64_t kMaxStaticK = 28000;
inline constexpr int64_t kMaxStaticBias = 1 << 28;

// What a Model says about the columns of Y.
struct StaticColumns {
  const int32_t* sums;   // of each column's weights
  const float* scales;   // of the weights
  ConstTensorView bias;  // absent, float32, or int32 in steps of X's scale times the weights'
  int64_t count;
  // Groups of so many columns each take so many in the tables.
  int64_t group;
  int64_t group_padded;

  int64_t padded() const { return count == 0 ? 0 : count / group * group_padded; }
};

// The part of a node's quantisation that is the same for QuantizedLinear and QuantizedConv.
// Attributes x_scale, x_zero_point, y_scale, y_zero_point (absent where Y is float32), activation
// (none, relu or clip) and its bounds, residual_scale, residual_zero_point, and product_scale,
// product_zero_point, product_dtype where the product is rounded by itself.
class StaticQuantization {
 public:
  StaticQuantization() = default;
  // Throws Error(kUnsupportedOp | kInvalidModel).
  StaticQuantization(const NodeSpec& node, size_t residual_input);

  ByteZero x() const { return x_.byte; }
  bool has_residual() const { return has_residual_; }
  // Without bias, factors, offsets and residual, which `columns` and the run give.
  const StaticFinish& finish() const { return finish_; }

  // Bytes of the tables of `padded` columns: offsets, factors and biases.
  static int64_t column_bytes(int64_t padded) { return padded * 12; }
  // Writes them for products of which `held` has to be taken off each element of X.
  void write_columns(int32_t held, const StaticColumns& columns, std::byte* to) const;
  static void point_at_columns(const std::byte* columns, int64_t padded, StaticFinish* finish);

 private:
  StaticTensor x_;
  double first_scale_ = 1.0;  // that products are counted in: the product's own or Y's
  bool has_residual_ = false;
  StaticFinish finish_;
};

}  // namespace headrace
