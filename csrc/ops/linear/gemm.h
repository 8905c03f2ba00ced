// Matrix products on packed operands: C = act(A * B + bias) + residual, in one of three precisions.
//
// Both operands are packed into 32-bit words, each of which holds one float, two bfloat16 or four
// 8-bit integers that are neighbours along k; to the layout they are all the same. A's rows lie
// apart by a constant, in blocks of kGemmBlockWords, so that the kernels reach every row of a tile
// from one register and no two rows fight for a cache set. B's columns lie in k-major panels of
// `panel_cols`, zero-padded; the same panels serve any number of rows, one included.
//
// Every element of C is one chain of multiply-adds over the words of k, in order, starting from 0,
// then the epilogue. Tiles, tails and threads only decide which elements are computed together, so
// the bits of a row depend on that row and on B alone.
//
// bf16 rounds both operands to bfloat16 (nearest, ties to even) and accumulates in float. int8 is
// dynamic: a row of A is spread over 0 .. 255 from its least value to its greatest, 0 among them,
// and a column of B symmetrically over -127 .. 127; sums of the products are exact in 32 bits, and
// then multiplied by both steps. Where the CPU has no instruction for it,
// bf16 runs on floats that hold rounded values, and int8 on pairs of 16-bit integers; int8 gives
// the same bits everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/cpu.h"
#include "core/function_ref.h"
#include "core/strided.h"
#include "ops/pack.h"
#include "ops/simd/dispatch.h"

namespace headrace {

class NodeSpec;
class OpRun;

enum class Precision : uint8_t { kF32, kBf16, kInt8 };

// The node's attribute "precision", fp32 if it is absent. Throws Error(kInvalidModel) for another.
Precision precision_of(const NodeSpec& spec);

enum class Activation : uint8_t {
  kNone,
  kRelu,
  kGeluErf,
  kGeluTanh,
  kSigmoid,
  kTanh,
  kSilu,
  kClip,
};

// What happens to an element of A * B on its way to C.
struct Epilogue {
  const float* bias = nullptr;  // one per column of C
  // Same shape as C; may be C itself: each element is read before it is written.
  const void* residual = nullptr;  // floats, or bfloat16
  bool residual_bf16 = false;
  int64_t residual_stride = 0;  // elements
  bool residual_first = false;  // the residual is added before the activation instead of after
  Activation activation = Activation::kNone;
  float clip_min = 0.0f;  // for kClip
  float clip_max = 0.0f;
};

// Element (i, j) is at data[i * stride + j], or at data[j * stride + i] if transposed.
struct Matrix {
  const float* data = nullptr;
  int64_t stride = 0;
  bool transposed = false;

  Matrix from_row(int64_t i) const {
    return {data + (transposed ? i : i * stride), stride, transposed};
  }
  Matrix from_col(int64_t j) const {
    return {data + (transposed ? j * stride : j), stride, transposed};
  }
};

// 32 bits of a packed operand.
using Word = uint32_t;

// Words of a row of A in one packed block, and the distance of its rows: 25 cache lines, an odd
// number, so that the rows of a tile spread over the sets of the L1 cache. What is left between
// rows is the kernels' own: int8 keeps the row's step and zero point there.
inline constexpr int64_t kGemmBlockWords = 384;
inline constexpr int64_t kGemmRowStride = 400;

// One product: `rows` packed rows of A times consecutive panels of B.
struct GemmBlock {
  const Word* a = nullptr;
  const Word* b = nullptr;  // first panel
  // The panel that this thread is likely to read after these, to be fetched meanwhile; may be null.
  const Word* next = nullptr;
  int64_t rows = 0;
  int64_t rows_packed = 0;  // that `a` was packed together with; 0 if these are all
  int64_t k = 0;            // words
  int64_t cols = 0;         // of C, from the first panel's first column
  void* c = nullptr;        // floats, or bfloat16
  bool c_bf16 = false;
  int64_t c_stride = 0;  // elements
  Epilogue epilogue;     // bias and residual at C's first element
  // What to bring into the L2 cache meanwhile: the rows that will be packed next, say.
  const void* fetch = nullptr;
  int64_t fetch_bytes = 0;
};

// The kernels of one precision on one ISA.
struct GemmKernels {
  int tile_rows;
  int panel_cols;
  int k_per_word;
  int64_t panel_extra;  // words behind each panel, for the kernels' own use
  // Packs `rows` x `k` elements.
  void (*pack_rows)(Matrix a, int64_t rows, int64_t k, Word* packed);
  // The same from rows of bfloat16, `stride` elements apart.
  void (*pack_bf16_rows)(const uint16_t* a, int64_t stride, int64_t rows, int64_t k, Word* packed);
  // Packs the panels that hold columns [0, cols), each element multiplied by `scale`.
  void (*pack_panels)(Matrix b, int64_t k, int64_t cols, float scale, Word* packed);
  void (*multiply)(const GemmBlock& block);
  // The epilogue alone, for products made elsewhere, whose rows are `stride` apart.
  void (*finish)(const GemmBlock& block, const float* products, int64_t stride);

  int64_t words(int64_t k) const { return (k + k_per_word - 1) / k_per_word; }
  int64_t panel_words(int64_t k) const { return words(k) * panel_cols + panel_extra; }
  // Words that `rows` packed rows of A with `k` elements take.
  int64_t packed_rows_words(int64_t rows, int64_t k) const {
    int64_t blocks = (words(k) + kGemmBlockWords - 1) / kGemmBlockWords;
    return (blocks > 0 ? blocks : 1) * rows * kGemmRowStride;
  }
};

HEADRACE_DECLARE_KERNELS(GemmKernels, gemm_kernels)  // fp32

// The fastest kernels for a precision. They do not outgrow 32-bit sums up to kMaxInt8K.
const GemmKernels& gemm_kernels_for(Isa isa, Precision precision);
inline constexpr int64_t kMaxInt8K = 1 << 16;

// Memory aligned for the kernels, freed with its owner.
struct AlignedDelete {
  void operator()(Word* p) const;
};
using AlignedWords = std::unique_ptr<Word[], AlignedDelete>;
AlignedWords make_aligned_words(int64_t count);

// A constant B, packed once per Plan.
class PackedPanels {
 public:
  PackedPanels() = default;
  // Packed as one block of `node`; `b` is not looked at if that comes out of a saved Plan.
  PackedPanels(const NodeSpec& node, const GemmKernels& kernels, Matrix b, int64_t k, int64_t cols,
               float scale = 1.0f);

  int64_t k() const { return k_; }
  int64_t cols() const { return cols_; }
  int64_t panels() const { return panels_; }
  const Word* panel(int64_t i) const { return packed_.as<Word>() + i * panel_size_; }

 private:
  int64_t k_ = 0;
  int64_t cols_ = 0;
  int64_t panels_ = 0;
  int64_t panel_size_ = 0;  // words
  Packed packed_;
};

// C[rows, cols] = A[rows, k] * B, spread over the run's threads.
struct GemmTask {
  const void* a = nullptr;  // floats, or bfloat16
  bool a_bf16 = false;
  int64_t a_stride = 0;  // elements
  int64_t rows = 0;
  void* c = nullptr;  // floats, or bfloat16
  bool c_bf16 = false;
  int64_t c_stride = 0;
  Epilogue epilogue;
};
void gemm(const OpRun& run, const GemmKernels& kernels, const PackedPanels& b,
          const GemmTask& task);

// A batch of products of one Request, whose operands are both known only now.
struct DynamicProducts {
  Matrix a;  // of the first product
  Matrix b;
  float* c = nullptr;  // dense; one product after the other
  int64_t rows = 0;
  int64_t k = 0;
  int64_t cols = 0;
  Shape batch;      // of products
  Strides a_steps;  // elements from matrix to matrix along each axis of `batch`
  Strides b_steps;
};

// C = scale * A * B (+ C, if `add`) for every product of every Request, both operands packed here.
void gemm_dynamic(const OpRun& run, const GemmKernels& kernels,
                  FunctionRef<DynamicProducts(size_t request)> products, float scale, bool add);

// Rows of A that leave room for panels of B in a core's L2 cache.
int64_t gemm_block_rows(const GemmKernels& kernels, int64_t k);

// The part of an epilogue that a fused op's attributes give: `activation`, `clip_min`, `clip_max`.
// Throws Error(kUnsupportedOp) for an unknown activation.
Epilogue epilogue_of(const NodeSpec& spec);

}  // namespace headrace
