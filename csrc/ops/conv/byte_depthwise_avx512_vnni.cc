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

struct BytePixels {
  // Tap `t` of pixel j, zeros where there is none.
  template <int kPixels>
  HR_INLINE __m512i tap(const ByteDepthwiseRow& r, int64_t taps, int64_t t, int j, int64_t c,
                        __mmask64 mask) {
    if (t >= taps) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi8(mask, r.sources[t * kPixels + j] + c);
  }

  template <StaticEnd kEnd, int kPixels>
  static void run(const ByteDepthwiseRow& r, int64_t taps, int64_t col) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(r.flip));
    const auto* weights = reinterpret_cast<const __m512i*>(r.weights);
    for (int64_t c = 0; c < r.channels; c += kChannels) {
      const int64_t n = r.channels - c;
      const __mmask64 mask = n >= kChannels ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
      __m512i acc[kPixels][4];
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) acc[j][v] = _mm512_setzero_si512();
      }
      for (int64_t t = 0; t < taps; t += kTaps, weights += 4) {
#pragma GCC unroll 4
        for (int j = 0; j < kPixels; ++j) {
          // Flipping a tap that is not there does no harm: its weight is 0.
          const __m512i x0 = _mm512_xor_si512(tap<kPixels>(r, taps, t, j, c, mask), flip);
          const __m512i x1 = _mm512_xor_si512(tap<kPixels>(r, taps, t + 1, j, c, mask), flip);
          const __m512i x2 = _mm512_xor_si512(tap<kPixels>(r, taps, t + 2, j, c, mask), flip);
          const __m512i x3 = _mm512_xor_si512(tap<kPixels>(r, taps, t + 3, j, c, mask), flip);
          const __m512i low01 = _mm512_unpacklo_epi8(x0, x1);
          const __m512i high01 = _mm512_unpackhi_epi8(x0, x1);
          const __m512i low23 = _mm512_unpacklo_epi8(x2, x3);
          const __m512i high23 = _mm512_unpackhi_epi8(x2, x3);
          auto add = [&](int v, __m512i x) __attribute__((always_inline)) {
            acc[j][v] = _mm512_dpbusd_epi32(acc[j][v], x, weights[v]);
          };
          add(0, _mm512_unpacklo_epi16(low01, low23));
          add(1, _mm512_unpackhi_epi16(low01, low23));
          add(2, _mm512_unpacklo_epi16(high01, high23));
          add(3, _mm512_unpackhi_epi16(high01, high23));
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) finish<kEnd>(r, acc[j], col + j, c);
    }
  }

  // Brings 64 channels back into their order, 16 a vector.
  template <StaticEnd kEnd>
  HR_INLINE void finish(const ByteDepthwiseRow& r, const __m512i* acc, int64_t col, int64_t c) {
    const __m512i a = _mm512_shuffle_i32x4(acc[0], acc[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(acc[2], acc[3], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(acc[0], acc[1], 0xee);
    const __m512i e = _mm512_shuffle_i32x4(acc[2], acc[3], 0xee);
    const Vi sums[4] = {{_mm512_shuffle_i32x4(a, b, 0x88)},
                        {_mm512_shuffle_i32x4(a, b, 0xdd)},
                        {_mm512_shuffle_i32x4(d, e, 0x88)},
                        {_mm512_shuffle_i32x4(d, e, 0xdd)}};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (c + 16 * i < r.channels) finish_channels<kEnd>(r, sums[i], col, c + 16 * i);
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
