#include "ops/simd/vec.h"
#include "ops/trees/forest.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// Vectors of codes: load, store, and choose: yes where code <= threshold, else no.
#if defined(__AVX2__)
HR_INLINE void load_codes(const void* p, __m256i* a) {
  *a = _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
HR_INLINE void store_codes(void* p, __m256i a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a);
}
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
HR_INLINE void load_codes(const void* p, __m512i* a) {
  *a = _mm512_loadu_si512(p);
}
HR_INLINE void store_codes(void* p, __m512i a) {
  _mm512_storeu_si512(p, a);
}
HR_INLINE __m512i choose(__m512i code, uint8_t threshold, __m512i yes, __m512i no) {
  __m512i limit = _mm512_set1_epi8(static_cast<char>(threshold));
  return _mm512_mask_blend_epi8(_mm512_cmple_epu8_mask(code, limit), no, yes);
}
HR_INLINE __m512i choose(__m512i code, uint16_t threshold, __m512i yes, __m512i no) {
  __m512i limit = _mm512_set1_epi16(static_cast<int16_t>(threshold));
  return _mm512_mask_blend_epi16(_mm512_cmple_epu16_mask(code, limit), no, yes);
}
HR_INLINE __m256i choose(__m256i code, uint8_t threshold, __m256i yes, __m256i no) {
  __m256i limit = _mm256_set1_epi8(static_cast<char>(threshold));
  return _mm256_mask_blend_epi8(_mm256_cmple_epu8_mask(code, limit), no, yes);
}
HR_INLINE __m256i choose(__m256i code, uint16_t threshold, __m256i yes, __m256i no) {
  __m256i limit = _mm256_set1_epi16(static_cast<int16_t>(threshold));
  return _mm256_mask_blend_epi16(_mm256_cmple_epu16_mask(code, limit), no, yes);
}
template <int kBytes>
struct CodesOf {
  using Type = __m512i;
};
template <>
struct CodesOf<32> {
  using Type = __m256i;
};
#elif defined(__AVX2__)
HR_INLINE __m256i choose(__m256i code, uint8_t threshold, __m256i yes, __m256i no) {
  __m256i limit = _mm256_set1_epi8(static_cast<char>(threshold));
  return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi8(_mm256_min_epu8(code, limit), code));
}
HR_INLINE __m256i choose(__m256i code, uint16_t threshold, __m256i yes, __m256i no) {
  __m256i limit = _mm256_set1_epi16(static_cast<int16_t>(threshold));
  return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi16(_mm256_min_epu16(code, limit), code));
}
template <int kBytes>
struct CodesOf {
  using Type = __m256i;
};
#else
typedef uint8_t Codes __attribute__((vector_size(16)));
typedef uint16_t Codes16 __attribute__((vector_size(16)));
HR_INLINE void load_codes(const void* p, Codes* a) {
  __builtin_memcpy(a, p, sizeof(*a));
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
template <int kBytes>
struct CodesOf {
  using Type = Codes;
};
#endif

template <class Code, int kRows>
HR_INLINE void take_step(LockstepStep step, const char* codes, const char* slots, char* result) {
  constexpr int kSlot = kBlockRows * sizeof(Code);
  constexpr int kBytes = kRows * sizeof(Code);
  using Vector = typename CodesOf<kBytes>::Type;
  const char* column = codes + static_cast<int64_t>(step.column) * kSlot;
  const char* if_true = slots + static_cast<int64_t>(step.if_true) * kSlot;
  const char* if_false = slots + static_cast<int64_t>(step.if_false) * kSlot;
  for (int b = 0; b < kBytes; b += static_cast<int>(sizeof(Vector))) {
    Vector code, yes, no;
    load_codes(column + b, &code);
    load_codes(if_true + b, &yes);
    load_codes(if_false + b, &no);
    store_codes(result + b, choose(code, static_cast<Code>(step.threshold), yes, no));
  }
}

// The unrolling matters: cores guess from a load's address in the code which earlier store it
// depends on, so loads of trees that take turns must not share one.
template <class Code, int kRows>
void lockstep_rows(const LockstepStep* steps, int64_t count, const Code* codes, Code* slots) {
  constexpr int kSlot = kBlockRows * sizeof(Code);
  const auto* code_bytes = reinterpret_cast<const char*>(codes);
  auto* slot_bytes = reinterpret_cast<char*>(slots);
  char* result = slot_bytes;
  for (int64_t s = 0; s < count; s += kGroupTrees) {
    take_step<Code, kRows>(steps[s], code_bytes, slot_bytes, result);
    take_step<Code, kRows>(steps[s + 1], code_bytes, slot_bytes, result + kSlot);
    take_step<Code, kRows>(steps[s + 2], code_bytes, slot_bytes, result + 2 * kSlot);
    take_step<Code, kRows>(steps[s + 3], code_bytes, slot_bytes, result + 3 * kSlot);
    result += kGroupTrees * kSlot;
  }
}

template <class Code>
void lockstep(const LockstepStep* steps, int64_t count, int64_t rows, const Code* codes,
              Code* slots) {
  if (rows <= kHalfBlockRows)
    return lockstep_rows<Code, kHalfBlockRows>(steps, count, codes, slots);
  lockstep_rows<Code, kBlockRows>(steps, count, codes, slots);
}
static_assert(kGroupTrees == 4);

// A binary search in lockstep: step sizes are the same for every value.
template <class T>
void rank(const T* thresholds, int32_t search_steps, int64_t rows, const T* values,
          int32_t* ranks) {
  for (int64_t i = 0; i < rows; ++i) ranks[i] = 0;
  for (int32_t step = (1 << search_steps) >> 1; step > 0; step >>= 1) {
    for (int64_t i = 0; i < rows; ++i) {
      ranks[i] += thresholds[ranks[i] + step - 1] < values[i] ? step : 0;
    }
  }
}

void rank_f32(const float* thresholds, int32_t search_steps, int64_t rows, const float* values,
              int32_t* ranks) {
  for (int64_t i = 0; i < rows; i += Vf::kLanes) {
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
void add_weights(const double* weights, int64_t rows, const Code* leaf, double* sums) {
  for (int64_t i = 0; i < rows; ++i) sums[i] += weights[leaf[i]];
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
