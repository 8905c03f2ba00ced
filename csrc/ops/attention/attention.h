// float32 kernel of the attention room, one per ISA.
#pragma once

#include <cstdint>

#include "ops/simd/dispatch.h"

namespace headrace {

// softmax(cap(scale * Q K^T) + mask) V for a block of queries of one head. Rows of Q and K hold
// head_dim elements next to each other, rows of V and O value_dim; strides are in elements.
struct AttentionBlock {
  const float* q;
  const float* k;
  const float* v;
  float* o;
  int64_t q_stride, k_stride, v_stride, o_stride;  // from row to row
  int64_t queries;                                 // at most AttentionKernels::query_block
  int64_t keys;
  int64_t head_dim;
  int64_t value_dim;
  float scale;
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
  float* scratch;  // scratch_floats(head_dim), 64-byte aligned
};

struct AttentionKernels {
  int64_t query_block;
  int64_t (*scratch_floats)(int64_t head_dim);
  void (*attend)(const AttentionBlock& block);
};

HEADRACE_DECLARE_KERNELS(AttentionKernels, attention_kernels)

}  // namespace headrace
