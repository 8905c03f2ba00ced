// Kernels of the attention room, in float32 and in bf16.
//
// bf16 rounds Q, K, V and the probabilities to bfloat16 (nearest, ties to even) and accumulates in
// float; scores, softmax and sums are float throughout. A query's probabilities are divided by the
// sum of the rounded ones, so that what they weigh still adds up to 1. Where the CPU has no
// instruction for it, bf16 runs on floats that hold rounded values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear/gemm.h"
#include "ops/simd/dispatch.h"

namespace headrace {

// Rows of floats or of bfloat16, `stride` elements apart.
struct AttentionOperand {
  const void* rows = nullptr;
  int64_t stride = 0;
  bool bf16 = false;
};

// Rows that are needed soon: `count` of `row_bytes`, `stride` bytes apart.
struct RowsAhead {
  const std::byte* rows = nullptr;
  int64_t stride = 0;
  int64_t row_bytes = 0;
  int64_t count = 0;
};

// softmax(cap(scale * Q K^T) + mask) V for a block of queries of one head. Rows of Q and K hold
// head_dim elements next to each other, rows of V and O value_dim.
struct AttentionBlock {
  AttentionOperand q, k, v;
  void* o = nullptr;  // floats, or bfloat16
  int64_t o_stride = 0;
  bool o_bf16 = false;
  int64_t queries = 0;  // at most AttentionKernels::query_block
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  float scale = 1.0f;
  float softcap = 0.0f;  // cap(x) = softcap * tanh(x / softcap); 0 for none
  // At most one of them is not null: what is added to a scaled score, or whether the key counts.
  const float* mask = nullptr;
  const bool* keep = nullptr;
  int64_t mask_q_stride = 0;
  int64_t mask_k_stride = 0;
  bool causal = false;  // query i sees keys up to i + causal_offset
  int64_t causal_offset = 0;
  // 0 instead of NaN for a query with no key left, or for any whose softmax is NaN.
  bool zero_if_empty = false;
  bool zero_if_nan = false;
  // What is fetched meanwhile: the rows of O, and Q, K and V of the thread's next block. A head's
  // rows lie a whole token apart, so that no hardware foresees them.
  RowsAhead ahead[4] = {};
  float* scratch = nullptr;  // scratch_floats(head_dim, value_dim), 64-byte aligned
};

struct AttentionKernels {
  // Queries that share packed keys and values, and those of them that are computed together. A
  // block may begin at any multiple of the latter: the bits are the same.
  int64_t query_block;
  int64_t query_lanes;
  int64_t (*scratch_floats)(int64_t head_dim, int64_t value_dim);
  void (*attend)(const AttentionBlock& block);
};

// The fastest kernels for fp32 or bf16.
const AttentionKernels& attention_kernels_for(Isa isa, Precision precision);

}  // namespace headrace
