// Where the windows of convolutions and poolings lie.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "ops/op.h"

namespace headrace {

// Spatial axes are always three here: tensors of fewer get leading axes of length 1.
inline constexpr int kSpatial = 3;

// kernel_shape, strides, dilations, pads, auto_pad and ceil_mode of a node.
struct WindowSpec {
  enum class AutoPad { kNotSet, kSameUpper, kSameLower, kValid };

  int rank = 0;  // spatial axes the attributes speak of; 0 if no attribute tells
  bool has_kernel = false;
  int64_t kernel[kSpatial] = {1, 1, 1};
  int64_t stride[kSpatial] = {1, 1, 1};
  int64_t dilation[kSpatial] = {1, 1, 1};
  int64_t pad_begin[kSpatial] = {};
  int64_t pad_end[kSpatial] = {};
  AutoPad auto_pad = AutoPad::kNotSet;
  bool ceil_mode = false;
};

// Throws Error(kUnsupportedOp | kInvalidModel).
WindowSpec window_of(const NodeSpec& spec);

// The windows over one shape of X.
struct Windows {
  int64_t in[kSpatial] = {1, 1, 1};
  int64_t out[kSpatial] = {1, 1, 1};
  int64_t kernel[kSpatial] = {1, 1, 1};
  int64_t stride[kSpatial] = {1, 1, 1};
  int64_t dilation[kSpatial] = {1, 1, 1};
  int64_t pad_begin[kSpatial] = {};
  int64_t pad_end[kSpatial] = {};

  int64_t in_size() const { return in[0] * in[1] * in[2]; }
  int64_t out_size() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// `x` is [N, C, spatial...]; `kernel` holds the kernel's length along each spatial axis.
// Throws Error(kShapeMismatch).
Windows windows_over(const WindowSpec& spec, const Shape& x, std::span<const int64_t> kernel);
// The same for a spec that has its kernel.
Windows windows_over(const WindowSpec& spec, const Shape& x);

// The taps [begin, end) of `axis` that fall below `limit` and not on the pads before X, for output
// position `out`.
struct Taps {
  int64_t begin;
  int64_t end;
};
Taps taps_inside(const Windows& w, int axis, int64_t out, int64_t limit);

// Taps that an average counts along an axis. The pads count if `count_pads`, but never what
// ceil_mode adds behind them.
int64_t counted_taps(const Windows& w, int axis, int64_t out, bool count_pads);

// `shape` with the channels where ONNX has them; they are last if `channels_last`.
Shape channels_first(const Shape& shape, bool channels_last);
// The inverse.
Shape channels_last(const Shape& shape);

// [N, channels, spatial axes of `w.out`...] with as many axes as x.
Shape output_shape(const Windows& w, const Shape& x, int64_t channels);

}  // namespace headrace
