#include "ops/conv/conv_kernels.h"
#include "ops/simd/vec.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
constexpr int64_t kCols = 2 * kLanes;  // as the matrix product's panels

constexpr float kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

HR_INLINE Vf lane_numbers() {
  return load(kLaneNumbers);
}

// The elements where m is set, 0 elsewhere; memory behind the others is not touched.
HR_INLINE Vf load_where(const float* p, Vm m) {
#if defined(__AVX512F__)
  return {_mm512_maskz_loadu_ps(m.m, p)};
#elif defined(__AVX2__)
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.m))};
#else
  Vf a = splat(0.0f);
  for (int i = 0; i < 4; ++i) {
    if (m.m[i] != 0) a.v[i] = p[i];
  }
  return a;
#endif
}

HR_INLINE bool all(Vm m) {
#if defined(__AVX512F__)
  return m.m == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(m.m) == 0xff;
#else
  return (m.m[0] & m.m[1] & m.m[2] & m.m[3]) != 0;
#endif
}

HR_INLINE Vm not_negative(Vi a) {
  return shift_right<31>(a) == splat(int32_t{0});
}

HR_INLINE Vi lane_indices() {
  return to_int(lane_numbers());
}

// Elements p[2 * i] of the lanes i where m is set, 0 elsewhere.
HR_INLINE Vf load_even_where(const float* p, Vm m) {
#if defined(__AVX512F__)
  // Two loads and a shuffle: a gather takes an access per lane.
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(_pdep_u32(m.m, 0x5555)), p);
  __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(_pdep_u32(m.m >> 8, 0x5555)), p + 16);
  return {_mm512_permutex2var_ps(low, even, high)};
#else
  float lanes[kLanes];
  store(lanes, select(m, splat(1.0f), splat(0.0f)));
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = lanes[i] != 0.0f ? p[2 * i] : 0.0f;
  return load(lanes);
#endif
}

// Channel after channel of one tap for one vector of pixels.
void pack_tap(const float* x, int64_t channels, int64_t channel_stride, const int32_t* offsets,
              int64_t row_stride, float* to) {
  int64_t first = 0;
  while (first < kLanes && offsets[first] < 0) ++first;
  if (first == kLanes) {
    for (int64_t c = 0; c < channels; ++c, to += row_stride) store(to, splat(0.0f));
    return;
  }
  const Vi index = load(offsets);
  const Vm valid = not_negative(index);
  // Whether the valid lanes read every element, or every other one, from some place on.
  const auto at = static_cast<int32_t>(offsets[first]);
  const auto lane = static_cast<int32_t>(first);
  const Vi steps = lane_indices();
  const Vi base1 = splat(at - lane);
  const Vi base2 = splat(at - 2 * lane);
  if (all(select(valid, index - steps, base1) == base1)) {
    const float* from = x + (at - lane);
    if (all(valid)) {
      for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += row_stride) {
        store(to, load(from));
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += row_stride) {
      store(to, load_where(from, valid));
    }
    return;
  }
  if (all(select(valid, index - steps - steps, base2) == base2)) {
    const float* from = x + (at - 2 * lane);
    for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += row_stride) {
      store(to, load_even_where(from, valid));
    }
    return;
  }
  const Vi safe = select(valid, index, splat(int32_t{0}));
  for (int64_t c = 0; c < channels; ++c, x += channel_stride, to += row_stride) {
    store(to, select(valid, gather(x, safe), splat(0.0f)));
  }
}

void pack_windows(const float* x, int64_t channels, int64_t channel_stride, const int32_t* offsets,
                  int64_t taps, float* panel) {
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t v = 0; v < kCols; v += kLanes) {
      pack_tap(x, channels, channel_stride, offsets + t * kCols + v, taps * kCols,
               panel + t * kCols + v);
    }
  }
}

// Elements row[first + steps[i]] for the lanes i, 0 outside [0, length); steps are i * stride.
HR_INLINE Vf load_strided(const float* row, int64_t first, Vi steps, int64_t stride,
                          int64_t length) {
  if (stride == 1 && first >= 0 && first + kLanes <= length) return load(row + first);
  const Vi index = splat(static_cast<int32_t>(first)) + steps;
  const Vm inside =
      not_negative(index) & not_negative(splat(static_cast<int32_t>(length) - 1) - index);
  if (stride == 1) return load_where(row + first, inside);
  if (stride == 2) return load_even_where(row + first, inside);
  return select(inside, gather(row, select(inside, index, splat(int32_t{0}))), splat(0.0f));
}

// One row of output pixels.
void depthwise_row(const DepthwisePlane& plane, int64_t depth, int64_t height, float* y) {
  const Windows& w = *plane.windows;
  int32_t step[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) step[i] = static_cast<int32_t>(i * w.stride[2]);
  const Vi steps = load(step);
  for (int64_t col = 0; col < w.out[2]; col += kLanes) {
    Vf acc = splat(0.0f);
    const float* kernel = plane.kernel;
    for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
      const int64_t d = depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
      for (int64_t kh = 0; kh < w.kernel[1]; ++kh, kernel += w.kernel[2]) {
        const int64_t h = height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
        if (d < 0 || d >= w.in[0] || h < 0 || h >= w.in[1]) continue;
        const float* row = plane.x + (d * w.in[1] + h) * w.in[2];
        int64_t first = col * w.stride[2] - w.pad_begin[2];
        for (int64_t kw = 0; kw < w.kernel[2]; ++kw, first += w.dilation[2]) {
          acc = fma(load_strided(row, first, steps, w.stride[2], w.in[2]), splat(kernel[kw]), acc);
        }
      }
    }
    const int64_t left = w.out[2] - col;
    if (left >= kLanes) {
      store(y + col, acc);
    } else {
      store(y + col, acc, left);
    }
  }
}

void depthwise(const DepthwisePlane& plane) {
  const Windows& w = *plane.windows;
  float* y = plane.y;
  for (int64_t depth = 0; depth < w.out[0]; ++depth) {
    for (int64_t height = 0; height < w.out[1]; ++height, y += w.out[2]) {
      depthwise_row(plane, depth, height, y);
    }
  }
}

}  // namespace

extern const ConvKernels conv_kernels;
const ConvKernels conv_kernels = {
    .pack_windows = pack_windows,
    .depthwise = depthwise,
};

}  // namespace headrace::HEADRACE_ISA_NS
