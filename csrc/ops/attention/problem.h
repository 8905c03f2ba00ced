// What the attention room's ops share: one Request's attention, and how a Batch of them is run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ops/attention/attention.h"
#include "ops/op.h"

namespace headrace {

// Where the rows of an operand are, in elements: floats, or bfloat16.
struct AttentionRows {
  const void* data = nullptr;
  bool bf16 = false;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  // In bytes.
  int64_t offset(int64_t batch, int64_t head, int64_t row) const {
    return (batch * batch_stride + head * head_stride + row * row_stride) * (bf16 ? 2 : 4);
  }
  AttentionOperand at(int64_t batch, int64_t head, int64_t row) const {
    return {static_cast<const std::byte*>(data) + offset(batch, head, row), row_stride, bf16};
  }
};

// One Request's attention: B samples of H heads.
struct AttentionProblem {
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  AttentionRows q = {}, k = {}, v = {}, o = {};
  void* output = nullptr;  // what o's strides are for; o.data is not used
  float scale = 0.0f;
  float softcap = 0.0f;
  const float* mask = nullptr;
  const bool* keep = nullptr;
  int64_t mask_strides[4] = {0, 0, 0, 0};  // 0 along axes the mask is broadcast over
  bool causal = false;
  int64_t causal_offset = 0;
  // Per sample: how many of its keys count. The last of them is then the last query's diagonal.
  const int64_t* valid_keys = nullptr;
  bool zero_if_empty = false;
  bool zero_if_nan = false;
  int64_t first_task = 0;  // for run_attention
};

// Throws Error(kShapeMismatch) unless `mask` broadcasts to [batch, heads, queries, keys]; a mask of
// fewer keys, where that is allowed, excludes the others.
void set_mask_strides(const Shape& mask, bool fewer_keys, AttentionProblem& problem);

// Computes the Requests' attentions, spread over the threads.
void run_attention(const OpRun& run, const AttentionKernels& kernels,
                   std::span<AttentionProblem> problems);

std::unique_ptr<Op> make_fused_attention(const NodeSpec& spec);  // headrace.Attention
std::unique_ptr<Op> make_onnx_attention(const NodeSpec& spec);   // Attention, from opset 23 on

}  // namespace headrace
