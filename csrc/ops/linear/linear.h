// The op that Linear, and MatMul and Gemm with constant weights, turn into.
#pragma once

#include "ops/linear/gemm.h"
#include "ops/op.h"

namespace headrace {

// Y = act(X * B + bias) + residual over all rows of all Requests at once. X is input 0.
class PackedLinear : public Op {
 public:
  struct Parts {
    PackedPanels panels;
    Packed bias;                 // float; empty if none
    Epilogue epilogue;           // its activation
    int residual = -1;           // the input that is the residual
    bool own_rows = false;       // the residual is a constant, of which each row of Y has its own
    unsigned consumed = 0;       // bit i: input i is packed or copied here
    bool matrices_only = false;  // X must have two dims
  };

  PackedLinear(const GemmKernels& kernels, Parts parts)
      : kernels_(kernels), parts_(std::move(parts)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override {
    return static_cast<int>(input) == parts_.residual;
  }
  bool row_wise() const override { return !parts_.own_rows; }
  bool consumes(size_t input) const override { return input < 32 && parts_.consumed >> input & 1; }

 private:
  void run_rows(const OpRun& run, size_t first, int64_t rows) const;

  const GemmKernels& kernels_;
  Parts parts_;
};

std::unique_ptr<Op> make_matmul(const NodeSpec& spec);
std::unique_ptr<Op> make_gemm(const NodeSpec& spec);
std::unique_ptr<Op> make_matmul_integer(const NodeSpec& spec);
std::unique_ptr<Op> make_qlinear_matmul(const NodeSpec& spec);
// MatMulInteger with constant weights; null where they are not, or not of a kind it packs.
std::unique_ptr<Op> make_packed_matmul_integer(const NodeSpec& spec);
std::unique_ptr<Op> make_quantized_linear(const NodeSpec& spec);
std::unique_ptr<Op> make_einsum(const NodeSpec& spec);

}  // namespace headrace
