// headrace.QuantizedConv(X, W, scales, bias?, residual?): a convolution of bytes, channels last, as
// linear/static_int8.h computes it. W is as ONNX has it, less its zero points: int8, or int16 where
// these are up to 255 away from 0; `scales` has one number per channel of Y.
//
// static_conv.cc prepares it; static_dense.cc and static_depthwise.cc are its two ways of
// computing.
#pragma once

#include <algorithm>
#include <memory>
#include <span>

#include "ops/conv/byte_depthwise.h"
#include "ops/conv/conv.h"
#include "ops/conv/window_rows.h"
#include "ops/linear/static_int8.h"
#include "ops/op.h"

namespace headrace {

// The convolution of consecutive Requests of one shape. Lies in scratch memory.
struct StaticProblem {
  Windows windows;
  int64_t images;
  const uint8_t* x;
  std::byte* y;
  const uint8_t* residual;
  int64_t first_task;
  int64_t row_blocks;
  int64_t col_ranges;
  // Where several ranges of columns go over the same rows, these are packed once for all of them.
  int64_t first_chunk;
  int64_t chunks;  // 0: every task packs its own

  int64_t rows() const { return images * windows.out_size(); }
};

class QuantizedConv : public Op {
 public:
  explicit QuantizedConv(const NodeSpec& node);

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override { return input == kResidual && overwrites_; }
  bool consumes(size_t input) const override { return input >= kWeight && input <= kBias; }

 private:
  enum Input : size_t { kX, kWeight, kScales, kBias, kResidual };
  // Rows of Y that are packed and multiplied at a time: `steps` of [begin, end), in even parts.
  struct Rows {
    int64_t begin, end;
    int64_t steps;

    int64_t step_begin(int64_t i) const { return begin + (end - begin) * i / steps; }
  };
  // Memory for them: one part's for each thread, and one for every shared chunk.
  struct PackedRows {
    Word* own;
    Word* shared;
    int64_t size;
  };

  void check(const NodeSpec& node) const;
  void pack(const NodeSpec& node);
  void pack_depthwise(const NodeSpec& node, std::byte* to) const;
  void pack_dense(const NodeSpec& node, Word* to) const;

  std::span<StaticProblem> problems_of(const OpRun& run) const;
  const StaticProblem& problem_of(std::span<const StaticProblem> problems, int64_t task) const;
  void run_dense(const OpRun& run, std::span<StaticProblem> problems) const;
  int64_t split(const OpRun& run, StaticProblem& p) const;
  int64_t step(const StaticProblem& p) const;
  int64_t window_bytes(const StaticProblem& p) const;
  Rows rows_of(const StaticProblem& p, int64_t block) const;
  Rows chunk_of(const StaticProblem& p, int64_t chunk) const;
  void run_task(const StaticProblem& p, int64_t task, const PackedRows& packed) const;
  void pack_rows(const StaticProblem& p, int64_t group, int64_t row, int64_t rows,
                 Word* packed) const;
  void run_depthwise(const OpRun& run, std::span<StaticProblem> problems) const;
  void run_depthwise_rows(const StaticProblem& p, int64_t begin, int64_t end,
                          const uint8_t* paddings, const uint8_t** sources) const;

  StaticFinish finish_of(const StaticProblem& p) const;
  int64_t channels_in() const { return groups_ * weight_[1]; }
  int64_t channels_out() const { return weight_[0]; }
  int64_t group_out() const { return weight_[0] / groups_; }
  int64_t taps() const { return weight_.elements(2, weight_.rank()); }
  int64_t k() const { return weight_[1] * taps(); }
  int64_t panels() const { return kernels_.panels(group_out()); }
  int64_t group_words() const { return panels() * kernels_.panel_words(k()); }
  // Columns of the tables that go with the weights.
  int64_t padded() const {
    if (depthwise_) return kernels_.panels(groups_) * kernels_.panel_cols;
    return groups_ * panels() * kernels_.panel_cols;
  }
  // The byte of X that stands for 0.
  uint8_t padding() const {
    return static_cast<uint8_t>(quantization_.x().zero ^ quantization_.x().flip);
  }

  WindowSpec window_;
  int64_t groups_;
  StaticQuantization quantization_;
  const StaticKernels& kernels_;
  const WindowRowsKernels& windows_;
  const ByteDepthwiseKernels& depthwise_kernels_;
  Shape weight_;
  bool depthwise_;
  bool overwrites_;
  Packed packed_;
  Packed columns_;
};

std::unique_ptr<Op> make_quantized_conv(const NodeSpec& node);

}  // namespace headrace
