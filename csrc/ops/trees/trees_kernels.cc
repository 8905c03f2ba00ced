#include "ops/simd/vec.h"
#include "ops/trees/forest.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// A vector of codes: 64 bytes at most, as the ISA has them.
#if defined(__AVX512BW__)
using Codes = __m512i;
HR_INLINE Codes load_codes(const void* p) {
  return _mm512_loadu_si512(p);
}
HR_INLINE void store_codes(void* p, Codes a) {
  _mm512_storeu_si512(p, a);
}
// yes where code <= threshold, else no
HR_INLINE Codes choose(Codes code, uint8_t threshold, Codes yes, Codes no) {
  __mmask64 is_yes = _mm512_cmple_epu8_mask(code, _mm512_set1_epi8(static_cast<char>(threshold)));
  return _mm512_mask_blend_epi8(is_yes, no, yes);
}
HR_INLINE Codes choose(Codes code, uint16_t threshold, Codes yes, Codes no) {
  __mmask32 is_yes =
      _mm512_cmple_epu16_mask(code, _mm512_set1_epi16(static_cast<int16_t>(threshold)));
  return _mm512_mask_blend_epi16(is_yes, no, yes);
}
#elif defined(__AVX2__)
using Codes = __m256i;
HR_INLINE Codes load_codes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
HR_INLINE void store_codes(void* p, Codes a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a);
}
HR_INLINE Codes choose(Codes code, uint8_t threshold, Codes yes, Codes no) {
  Codes limit = _mm256_set1_epi8(static_cast<char>(threshold));
  return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi8(_mm256_min_epu8(code, limit), code));
}
HR_INLINE Codes choose(Codes code, uint16_t threshold, Codes yes, Codes no) {
  Codes limit = _mm256_set1_epi16(static_cast<int16_t>(threshold));
  return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi16(_mm256_min_epu16(code, limit), code));
}
#else
typedef uint8_t Codes __attribute__((vector_size(16)));
typedef uint16_t Codes16 __attribute__((vector_size(16)));
HR_INLINE Codes load_codes(const void* p) {
  Codes a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
HR_INLINE void store_codes(void* p, Codes a) {
  __builtin_memcpy(p, &a, sizeof(a));
}
HR_INLINE Codes choose(Codes code, uint8_t threshold, Codes yes, Codes no) {
  return code <= threshold ? yes : no;
}
HR_INLINE Codes choose(Codes code, uint16_t threshold, Codes yes, Codes no) {
  auto is_yes = reinterpret_cast<Codes16>(code) <= threshold;
  return reinterpret_cast<Codes>(is_yes ? reinterpret_cast<Codes16>(yes)
                                        : reinterpret_cast<Codes16>(no));
}
#endif

template <class Code>
HR_INLINE void take_step(LockstepStep step, const char* codes, const char* slots, char* result) {
  constexpr int kSlot = kBlockRows * sizeof(Code);
  constexpr int kVector = sizeof(Codes);
  const char* column = codes + static_cast<int64_t>(step.column) * kSlot;
  const char* yes = slots + static_cast<int64_t>(step.if_true) * kSlot;
  const char* no = slots + static_cast<int64_t>(step.if_false) * kSlot;
  for (int b = 0; b < kSlot; b += kVector) {
    store_codes(result + b, choose(load_codes(column + b), static_cast<Code>(step.threshold),
                                   load_codes(yes + b), load_codes(no + b)));
  }
}

// The unrolling matters: cores guess from a load's address in the code which earlier store it
// depends on, so loads of trees that take turns must not share one.
template <class Code>
void lockstep(const LockstepStep* steps, int64_t count, const Code* codes, Code* slots) {
  constexpr int kSlot = kBlockRows * sizeof(Code);
  const auto* code_bytes = reinterpret_cast<const char*>(codes);
  auto* slot_bytes = reinterpret_cast<char*>(slots);
  char* result = slot_bytes;
  for (int64_t s = 0; s < count; s += kGroupTrees) {
    take_step<Code>(steps[s], code_bytes, slot_bytes, result);
    take_step<Code>(steps[s + 1], code_bytes, slot_bytes, result + kSlot);
    take_step<Code>(steps[s + 2], code_bytes, slot_bytes, result + 2 * kSlot);
    take_step<Code>(steps[s + 3], code_bytes, slot_bytes, result + 3 * kSlot);
    result += kGroupTrees * kSlot;
  }
}
static_assert(kGroupTrees == 4);

// A binary search in lockstep: step sizes are the same for every value.
template <class T>
void rank(const T* thresholds, int32_t search_steps, const T* values, int32_t* ranks) {
  for (int i = 0; i < kBlockRows; ++i) ranks[i] = 0;
  for (int32_t step = (1 << search_steps) >> 1; step > 0; step >>= 1) {
    for (int i = 0; i < kBlockRows; ++i) {
      ranks[i] += thresholds[ranks[i] + step - 1] < values[i] ? step : 0;
    }
  }
}

void rank_f32(const float* thresholds, int32_t search_steps, const float* values, int32_t* ranks) {
  for (int i = 0; i < kBlockRows; i += Vf::kLanes) {
    Vf value = load(values + i);
    Vi at = splat(0);
    for (int32_t step = (1 << search_steps) >> 1; step > 0; step >>= 1) {
      Vf threshold = gather(thresholds, at + splat(step - 1));
      at = at + select(threshold < value, splat(step), splat(0));
    }
    store(ranks + i, at);
  }
}

template <class Code>
void set_codes(const uint64_t* bits, const int32_t* numbers, Code* codes) {
  for (int i = 0; i < kBlockRows; ++i) {
    uint64_t bit = bits[numbers[i] >> 6] >> (numbers[i] & 63);
    codes[i] = static_cast<Code>(~bit & 1);
  }
}

template <class Code>
void add_weights(const double* weights, int32_t, const Code* leaf, double* sums) {
  for (int i = 0; i < kBlockRows; ++i) sums[i] += weights[leaf[i]];
}

}  // namespace

const TreeKernels kTreeKernels = {
    rank_f32,
    rank<double>,
    set_codes<uint8_t>,
    set_codes<uint16_t>,
    set_codes<uint32_t>,
    lockstep<uint8_t>,
    lockstep<uint16_t>,
    add_weights<uint8_t>,
    add_weights<uint16_t>,
};

}  // namespace headrace::HEADRACE_ISA_NS
