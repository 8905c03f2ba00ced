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

// One load of the whole step leaves the load units, which are the bottleneck, to the vectors.
template <class Code, int kRows>
HR_INLINE void take_step(const LockstepStep* at, const char* codes, const char* slots,
                         char* result) {
  constexpr int kBytes = kRows * sizeof(Code);
  using Vector = typename CodesOf<kBytes>::Type;
  uint64_t step;
  __builtin_memcpy(&step, at, sizeof(step));
  const char* column = codes + (step & 0xffff) * kLockstepUnit;
  const char* if_true = slots + static_cast<int16_t>(step >> 32) * int64_t{kLockstepUnit};
  const char* if_false = slots + (static_cast<int64_t>(step) >> 48) * kLockstepUnit;
  for (int b = 0; b < kBytes; b += static_cast<int>(sizeof(Vector))) {
    Vector code, yes, no;
    load_codes(column + b, &code);
    load_codes(if_true + b, &yes);
    load_codes(if_false + b, &no);
    store_codes(result + b, choose(code, static_cast<Code>(at->threshold), yes, no));
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
    take_step<Code, kRows>(steps + s, code_bytes, slot_bytes, result);
    take_step<Code, kRows>(steps + s + 1, code_bytes, slot_bytes, result + kSlot);
    take_step<Code, kRows>(steps + s + 2, code_bytes, slot_bytes, result + 2 * kSlot);
    take_step<Code, kRows>(steps + s + 3, code_bytes, slot_bytes, result + 3 * kSlot);
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

// How many of 16 sorted keys are below a value.
#if defined(__AVX512F__)
HR_INLINE int32_t count_below(const float* keys, float value) {
  __m512 v = _mm512_set1_ps(value);
  return __builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(keys), v, _CMP_LT_OQ));
}
HR_INLINE int32_t count_below(const double* keys, double value) {
  __m512d v = _mm512_set1_pd(value);
  return __builtin_popcount(_mm512_cmp_pd_mask(_mm512_loadu_pd(keys), v, _CMP_LT_OQ)) +
         __builtin_popcount(_mm512_cmp_pd_mask(_mm512_loadu_pd(keys + 8), v, _CMP_LT_OQ));
}
#elif defined(__AVX2__)
HR_INLINE int32_t count_below(const float* keys, float value) {
  __m256 v = _mm256_set1_ps(value);
  int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(keys), v, _CMP_LT_OQ));
  int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(keys + 8), v, _CMP_LT_OQ));
  return __builtin_popcount(static_cast<unsigned>(low | high << 8));
}
HR_INLINE int32_t count_below(const double* keys, double value) {
  __m256d v = _mm256_set1_pd(value);
  int below = 0;
  for (int i = 0; i < 4; ++i) {
    __m256d less = _mm256_cmp_pd(_mm256_loadu_pd(keys + 4 * i), v, _CMP_LT_OQ);
    below |= _mm256_movemask_pd(less) << (4 * i);
  }
  return __builtin_popcount(static_cast<unsigned>(below));
}
#elif defined(__aarch64__)
// A lane where it holds is -1.
HR_INLINE int32_t count_below(const float* keys, float value) {
  uint32x4_t below = vdupq_n_u32(0);
  for (int i = 0; i < 16; i += 4) {
    below = vaddq_u32(below, vcltq_f32(vld1q_f32(keys + i), vdupq_n_f32(value)));
  }
  return -static_cast<int32_t>(vaddvq_u32(below));
}
HR_INLINE int32_t count_below(const double* keys, double value) {
  uint64x2_t below = vdupq_n_u64(0);
  for (int i = 0; i < 16; i += 2) {
    below = vaddq_u64(below, vcltq_f64(vld1q_f64(keys + i), vdupq_n_f64(value)));
  }
  return -static_cast<int32_t>(vaddvq_u64(below));
}
#else
template <class T>
HR_INLINE int32_t count_below(const T* keys, T value) {
  int32_t below = 0;
  for (int i = 0; i < SortedKeys::kFanout; ++i) below += keys[i] < value ? 1 : 0;
  return below;
}
#endif

template <class T>
void rank(const T* keys, const SortedKeys* sorted, int64_t step, int64_t count, const T* values,
          int32_t* ranks) {
  for (int64_t i = 0; i < count; ++i) {
    const SortedKeys& tree = sorted[i * step];
    int32_t at = 0;
    for (int32_t l = 0; l < tree.levels; ++l) {
      at = at * SortedKeys::kFanout;
      at += count_below(keys + tree.level[l] + at, values[i]);
    }
    ranks[i] = at;
  }
}

template <class Code>
void set_codes(const uint64_t* bits, const int32_t* numbers, Code* codes) {
  for (int i = 0; i < kBlockRows; ++i) {
    uint64_t bit = bits[numbers[i] >> 6] >> (numbers[i] & 63);
    codes[i] = static_cast<Code>(~bit & 1);
  }
}

template <class Code, int kTrees>
HR_INLINE void add_group(const double* const* weights, int64_t rows, const Code* leaves,
                         double* sums) {
  const double* own[kTrees];
  for (int t = 0; t < kTrees; ++t) own[t] = weights[t];
  for (int64_t i = 0; i < rows; ++i) {
    double sum = sums[i];
    for (int t = 0; t < kTrees; ++t) sum += own[t][leaves[t * kBlockRows + i]];
    sums[i] = sum;
  }
}

template <class Code>
void add_weights(const double* const* weights, int64_t trees, int64_t rows, const Code* leaves,
                 double* sums) {
  if (trees == kGroupTrees) return add_group<Code, kGroupTrees>(weights, rows, leaves, sums);
  for (int64_t t = 0; t < trees; ++t) {
    add_group<Code, 1>(weights + t, rows, leaves + t * kBlockRows, sums);
  }
}

}  // namespace

const TreeKernels kTreeKernels = {
    rank<float>,         rank<double>,         set_codes<uint8_t>,
    set_codes<uint16_t>, set_codes<uint32_t>,  lockstep<uint8_t>,
    lockstep<uint16_t>,  add_weights<uint8_t>, add_weights<uint16_t>,
};

}  // namespace headrace::HEADRACE_ISA_NS
