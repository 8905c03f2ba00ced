// Four taps of 64 channels at a time: their bytes are interleaved, so that each 32-bit lane holds
// the four taps of one channel, and multiplied by weights that lie so already.
#include "ops/conv/byte_depthwise_sources.h"

namespace headrace::avx512_vnni {
namespace {

constexpr int64_t kChannels = 64;
constexpr int64_t kTaps = 4;

int64_t packed_bytes(int64_t taps, int64_t channels) {
  return (channels + kChannels - 1) / kChannels * kChannels * ((taps + kTaps - 1) / kTaps * kTaps);
}

// Interleaving works within 16 bytes: dword j of their lane l in vector v is channel 16 l + 4 v +
// j.
void pack(const float* weights, int64_t taps, int64_t channels, std::byte* packed) {
  auto* to = reinterpret_cast<int8_t*>(packed);
  for (int64_t c = 0; c < channels; c += kChannels) {
    for (int64_t t = 0; t < taps; t += kTaps) {
      for (int64_t i = 0; i < kChannels * kTaps; ++i) {
        const int64_t v = i / 64, l = i / 16 % 4, j = i / 4 % 4, tap = t + i % 4;
        const int64_t channel = c + 16 * l + 4 * v + j;
        const bool there = channel < channels && tap < taps;
        *to++ = there ? static_cast<int8_t>(weights[channel * taps + tap]) : int8_t{0};
      }
    }
  }
}

// The instructions that a chunk of 64 channels takes, and those for a last one of 32 or less, which
// are the lower halves of the same vectors.
struct Whole {
  using Vector = __m512i;
  using Mask = __mmask64;
  HR_INLINE Mask below(int64_t n) { return n >= 64 ? ~Mask{0} : (Mask{1} << n) - 1; }
  HR_INLINE Vector load(Mask mask, const uint8_t* from) {
    return _mm512_maskz_loadu_epi8(mask, from);
  }
  HR_INLINE Vector zeros() { return _mm512_setzero_si512(); }
  HR_INLINE Vector bytes(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  HR_INLINE Vector flip(Vector x, Vector by) { return _mm512_xor_si512(x, by); }
  HR_INLINE Vector low8(Vector a, Vector b) { return _mm512_unpacklo_epi8(a, b); }
  HR_INLINE Vector high8(Vector a, Vector b) { return _mm512_unpackhi_epi8(a, b); }
  HR_INLINE Vector low16(Vector a, Vector b) { return _mm512_unpacklo_epi16(a, b); }
  HR_INLINE Vector high16(Vector a, Vector b) { return _mm512_unpackhi_epi16(a, b); }
  HR_INLINE Vector dot(Vector sum, Vector x, const __m512i& w) {
    return _mm512_dpbusd_epi32(sum, x, w);
  }
  // Brings channels back into their order, 16 a vector.
  static constexpr int kSums = 4;
  HR_INLINE void order(const Vector (&acc)[4], Vi (&sums)[4]) {
    const __m512i a = _mm512_shuffle_i32x4(acc[0], acc[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(acc[2], acc[3], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(acc[0], acc[1], 0xee);
    const __m512i e = _mm512_shuffle_i32x4(acc[2], acc[3], 0xee);
    sums[0] = {_mm512_shuffle_i32x4(a, b, 0x88)};
    sums[1] = {_mm512_shuffle_i32x4(a, b, 0xdd)};
    sums[2] = {_mm512_shuffle_i32x4(d, e, 0x88)};
    sums[3] = {_mm512_shuffle_i32x4(d, e, 0xdd)};
  }
};

struct Half {
  using Vector = __m256i;
  using Mask = __mmask32;
  HR_INLINE Mask below(int64_t n) { return n >= 32 ? ~Mask{0} : (Mask{1} << n) - 1; }
  HR_INLINE Vector load(Mask mask, const uint8_t* from) {
    return _mm256_maskz_loadu_epi8(mask, from);
  }
  HR_INLINE Vector zeros() { return _mm256_setzero_si256(); }
  HR_INLINE Vector bytes(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  HR_INLINE Vector flip(Vector x, Vector by) { return _mm256_xor_si256(x, by); }
  HR_INLINE Vector low8(Vector a, Vector b) { return _mm256_unpacklo_epi8(a, b); }
  HR_INLINE Vector high8(Vector a, Vector b) { return _mm256_unpackhi_epi8(a, b); }
  HR_INLINE Vector low16(Vector a, Vector b) { return _mm256_unpacklo_epi16(a, b); }
  HR_INLINE Vector high16(Vector a, Vector b) { return _mm256_unpackhi_epi16(a, b); }
  HR_INLINE Vector dot(Vector sum, Vector x, const __m512i& w) {
    return _mm256_dpbusd_epi32(sum, x, _mm512_castsi512_si256(w));
  }
  static constexpr int kSums = 2;
  HR_INLINE void order(const Vector (&acc)[4], Vi (&sums)[2]) {
    auto join = [](__m256i low, __m256i high) __attribute__((always_inline)) {
      return Vi{_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
    };
    sums[0] = join(_mm256_permute2x128_si256(acc[0], acc[1], 0x20),
                   _mm256_permute2x128_si256(acc[2], acc[3], 0x20));
    sums[1] = join(_mm256_permute2x128_si256(acc[0], acc[1], 0x31),
                   _mm256_permute2x128_si256(acc[2], acc[3], 0x31));
  }
};

struct BytePixels {
  template <StaticEnd kEnd, int kPixels>
  static void run(const ByteDepthwiseRow& r, int64_t taps, int64_t col) {
    const auto* weights = reinterpret_cast<const __m512i*>(r.weights);
    const int64_t step = (taps + kTaps - 1) / kTaps * 4;
    for (int64_t c = 0; c < r.channels; c += kChannels, weights += step) {
      if (r.channels - c > kChannels / 2) {
        chunk<Whole, kEnd, kPixels>(r, taps, col, c, weights);
      } else {
        chunk<Half, kEnd, kPixels>(r, taps, col, c, weights);
      }
    }
  }

  template <class Part, StaticEnd kEnd, int kPixels>
  HR_INLINE void chunk(const ByteDepthwiseRow& r, int64_t taps, int64_t col, int64_t c,
                       const __m512i* weights) {
    const auto mask = Part::below(r.channels - c);
    const auto flip = Part::bytes(r.flip);
    // Tap `t` of pixel j, zeros where there is none. Flipping those does no harm: their weight is
    // 0.
    auto tap = [&](int64_t t, int j) __attribute__((always_inline)) {
      auto x = t < taps ? Part::load(mask, r.sources[t * kPixels + j] + c) : Part::zeros();
      return Part::flip(x, flip);
    };
    typename Part::Vector acc[kPixels][4];
#pragma GCC unroll 4
    for (int j = 0; j < kPixels; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[j][v] = Part::zeros();
    }
    for (int64_t t = 0; t < taps; t += kTaps, weights += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) {
        const auto x0 = tap(t, j);
        const auto x1 = tap(t + 1, j);
        const auto x2 = tap(t + 2, j);
        const auto x3 = tap(t + 3, j);
        const auto low01 = Part::low8(x0, x1);
        const auto high01 = Part::high8(x0, x1);
        const auto low23 = Part::low8(x2, x3);
        const auto high23 = Part::high8(x2, x3);
        acc[j][0] = Part::dot(acc[j][0], Part::low16(low01, low23), weights[0]);
        acc[j][1] = Part::dot(acc[j][1], Part::high16(low01, low23), weights[1]);
        acc[j][2] = Part::dot(acc[j][2], Part::low16(high01, high23), weights[2]);
        acc[j][3] = Part::dot(acc[j][3], Part::high16(high01, high23), weights[3]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kPixels; ++j) {
      Vi sums[Part::kSums];
      Part::order(acc[j], sums);
#pragma GCC unroll 4
      for (int i = 0; i < Part::kSums; ++i) {
        if (c + 16 * i < r.channels) finish_channels<kEnd>(r, sums[i], col + j, c + 16 * i);
      }
    }
  }
};

void run(const ByteDepthwiseRow& r) {
  each_pixels<BytePixels>(r);
}

}  // namespace

extern const ByteDepthwiseKernels byte_depthwise;
const ByteDepthwiseKernels byte_depthwise = {
    .packed_bytes = packed_bytes, .pack = pack, .run = run};

}  // namespace headrace::avx512_vnni
