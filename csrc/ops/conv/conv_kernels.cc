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

// Channel after channel of one tap for one vector of pixels.
void pack_tap(const float* x, int64_t channels, int64_t channel_stride, const int32_t* offsets,
              int64_t row_stride, float* to) {
  int64_t first = 0;
  while (first < kLanes && offsets[first] < 0) ++first;
  if (first == kLanes) {
    for (int64_t c = 0; c < channels; ++c, to += row_stride) store(to, splat(0.0f));
    return;
  }
  const int64_t base = offsets[first] - first;
  bool contiguous = true;
  bool complete = true;
  for (int64_t i = 0; i < kLanes; ++i) {
    complete = complete && offsets[i] >= 0;
    contiguous = contiguous && (offsets[i] < 0 || offsets[i] - i == base);
  }
  if (contiguous && complete) {
    const float* from = x + base;
    for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += row_stride) {
      store(to, load(from));
    }
    return;
  }
  const Vi index = load(offsets);
  const Vm valid = shift_right<31>(index) == splat(int32_t{0});
  if (contiguous) {
    const float* from = x + base;
    for (int64_t c = 0; c < channels; ++c, from += channel_stride, to += row_stride) {
      store(to, load_where(from, valid));
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

// Elements row[first + i * stride] for i < kLanes, 0 outside [0, length).
HR_INLINE Vf load_strided(const float* row, int64_t first, int64_t stride, int64_t length) {
  if (stride == 1) {
    if (first >= 0 && first + kLanes <= length) return load(row + first);
    Vf lane = lane_numbers();
    Vm inside = (splat(static_cast<float>(-first)) <= lane) &
                (lane < splat(static_cast<float>(length - first)));
    return load_where(row + first, inside);
  }
  int32_t index[kLanes];
  float weight[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    int64_t at = first + i * stride;
    bool inside = at >= 0 && at < length;
    index[i] = inside ? static_cast<int32_t>(at) : 0;
    weight[i] = inside ? 1.0f : 0.0f;
  }
  Vm inside = splat(0.0f) < load(weight);
  return select(inside, gather(row, load(index)), splat(0.0f));
}

// One row of output pixels.
void depthwise_row(const DepthwisePlane& plane, int64_t depth, int64_t height, float* y) {
  const Windows& w = *plane.windows;
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
          acc = fma(load_strided(row, first, w.stride[2], w.in[2]), splat(kernel[kw]), acc);
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
