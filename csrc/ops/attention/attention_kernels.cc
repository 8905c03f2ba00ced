// Attention on floats, and what stands in for bf16 where the CPU has no instructions for it: floats
// that hold rounded values.
#include "ops/attention/attend.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

template <bool kRounds>
struct FloatWords {
  static constexpr int64_t kPerWord = 1;
  HR_INLINE Vf row(const float* from, int64_t n) {
    Vf x = get(from, n);
    return kRounds ? round_to_bf16(x) : x;
  }
  HR_INLINE Vf row(const uint16_t* from, int64_t n) { return get(from, n); }
  HR_INLINE Vf word(const Vf* x) { return kRounds ? round_to_bf16(x[0]) : x[0]; }
  HR_INLINE Vf add(Vf word, Vf sum) { return sum + word; }
  HR_INLINE Vs broadcast(const float* word) { return load_scalar(word); }
  HR_INLINE Vf load(const float* words) { return HEADRACE_ISA_NS::load(words); }
  template <class Factor>
  HR_INLINE Vf dot(Factor a, Vf b, Vf sum) {
    return fma(a, b, sum);
  }
};

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {
    .query_block = kQueryBlock,
    .query_lanes = kWidth,
    .scratch_floats = scratch_floats<FloatWords<false>>,
    .attend = attend<FloatWords<false>>,
};

extern const AttentionKernels attention_bf16_kernels;
const AttentionKernels attention_bf16_kernels = {
    .query_block = kQueryBlock,
    .query_lanes = kWidth,
    .scratch_floats = scratch_floats<FloatWords<true>>,
    .attend = attend<FloatWords<true>>,
};

}  // namespace headrace::HEADRACE_ISA_NS
