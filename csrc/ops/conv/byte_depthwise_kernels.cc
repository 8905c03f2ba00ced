// On floats, which hold such sums exactly.
#include "ops/conv/byte_depthwise_sources.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;

// Channels in a row of packed weights.
HR_INLINE int64_t padded(int64_t channels) {
  return (channels + kLanes - 1) / kLanes * kLanes;
}

int64_t packed_bytes(int64_t taps, int64_t channels) {
  return taps * padded(channels) * 4;
}

void pack(const float* weights, int64_t taps, int64_t channels, std::byte* packed) {
  auto* to = reinterpret_cast<float*>(packed);
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = 0; c < padded(channels); ++c) {
      *to++ = c < channels ? weights[c * taps + t] : 0.0f;
    }
  }
}

// `n` bytes, or all of a vector's.
HR_INLINE Vi load_bytes_of(const uint8_t* from, int64_t n) {
  if (n >= kLanes) return U8::load(from);
  uint8_t all[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = from[i];
  return U8::load(all);
}

struct FloatPixels {
  template <StaticEnd kEnd, int kPixels>
  static void run(const ByteDepthwiseRow& r, int64_t taps, int64_t col) {
    const Vi flip = splat(static_cast<int32_t>(r.flip));
    const int64_t step = padded(r.channels);
    for (int64_t c = 0; c < r.channels; c += kLanes) {
      const int64_t n = r.channels - c;
      Vf acc[kPixels];
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) acc[j] = splat(0.0f);
      const uint8_t* const* source = r.sources;
      const float* weights = reinterpret_cast<const float*>(r.weights) + c;
      auto add_taps = [&](int64_t lanes) __attribute__((always_inline)) {
        for (int64_t t = 0; t < taps; ++t, source += kPixels, weights += step) {
          const Vf weight = load(weights);
#pragma GCC unroll 4
          for (int j = 0; j < kPixels; ++j) {
            acc[j] = fma(to_float(load_bytes_of(source[j] + c, lanes) ^ flip), weight, acc[j]);
          }
        }
      };
      if (n >= kLanes) {
        add_taps(kLanes);
      } else {
        add_taps(n);
      }
#pragma GCC unroll 4
      for (int j = 0; j < kPixels; ++j) finish_channels<kEnd>(r, to_int(acc[j]), col + j, c);
    }
  }
};

void run(const ByteDepthwiseRow& r) {
  each_pixels<FloatPixels>(r);
}

}  // namespace

extern const ByteDepthwiseKernels byte_depthwise;
const ByteDepthwiseKernels byte_depthwise = {
    .packed_bytes = packed_bytes, .pack = pack, .run = run};

}  // namespace headrace::HEADRACE_ISA_NS
