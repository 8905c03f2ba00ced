#include "ops/conv/window.h"

#include <algorithm>

namespace headrace {
namespace {

// Copies an attribute of one number per spatial axis to the last axes of `to`.
void read_axes(const NodeSpec& spec, const std::vector<int64_t>& values, int rank, int64_t min,
               int64_t* to) {
  for (int axis = 0; axis < rank; ++axis) {
    int64_t value = values[static_cast<size_t>(axis)];
    if (value < min) spec.invalid(str("got ", value, " for a window, expected at least ", min));
    to[kSpatial - rank + axis] = value;
  }
}

int64_t output_length(const WindowSpec& spec, int64_t in, int64_t extent, int axis) {
  int64_t stride = spec.stride[axis];
  switch (spec.auto_pad) {
    case WindowSpec::AutoPad::kSameUpper:
    case WindowSpec::AutoPad::kSameLower:
      return (in + stride - 1) / stride;
    case WindowSpec::AutoPad::kValid:
      return in < extent ? 0 : (in - extent) / stride + 1;
    case WindowSpec::AutoPad::kNotSet:
      break;
  }
  int64_t room = in + spec.pad_begin[axis] + spec.pad_end[axis] - extent;
  if (room < 0) return 0;
  int64_t length = (room + (spec.ceil_mode ? stride - 1 : 0)) / stride + 1;
  // The last window must start inside the input or the padding before it.
  if (spec.ceil_mode && (length - 1) * stride >= in + spec.pad_begin[axis]) --length;
  return length;
}

}  // namespace

WindowSpec window_of(const NodeSpec& spec) {
  WindowSpec window;
  std::string auto_pad = spec.string_or("auto_pad", "NOTSET");
  using AutoPad = WindowSpec::AutoPad;
  if (auto_pad == "SAME_UPPER") {
    window.auto_pad = AutoPad::kSameUpper;
  } else if (auto_pad == "SAME_LOWER") {
    window.auto_pad = AutoPad::kSameLower;
  } else if (auto_pad == "VALID") {
    window.auto_pad = AutoPad::kValid;
  } else if (auto_pad != "NOTSET") {
    spec.invalid(str("got auto_pad '", auto_pad, "'"));
  }
  window.ceil_mode = spec.int_or("ceil_mode", 0) != 0;
  struct Axes {
    const char* name;
    int per_axis;
    int64_t min;
  };
  for (Axes a : {Axes{"kernel_shape", 1, 1}, Axes{"strides", 1, 1}, Axes{"dilations", 1, 1},
                 Axes{"pads", 2, 0}}) {
    std::vector<int64_t> values = spec.ints(a.name);
    if (values.empty()) continue;
    int rank = static_cast<int>(values.size()) / a.per_axis;
    if (rank > kSpatial) {
      spec.unsupported(str("got ", rank, " spatial axes, expected at most ", kSpatial));
    }
    if ((window.rank != 0 && rank != window.rank) ||
        rank * a.per_axis != static_cast<int>(values.size())) {
      spec.invalid(
          str("got ", values.size(), " ", a.name, ", which do not fit the other attributes"));
    }
    window.rank = rank;
    std::string_view name = a.name;
    if (name == "kernel_shape") {
      window.has_kernel = true;
      read_axes(spec, values, rank, a.min, window.kernel);
    } else if (name == "strides") {
      read_axes(spec, values, rank, a.min, window.stride);
    } else if (name == "dilations") {
      read_axes(spec, values, rank, a.min, window.dilation);
    } else {
      read_axes(spec, values, rank, a.min, window.pad_begin);
      values.erase(values.begin(), values.begin() + rank);
      read_axes(spec, values, rank, a.min, window.pad_end);
    }
  }
  return window;
}

Windows windows_over(const WindowSpec& spec, const Shape& x, std::span<const int64_t> kernel) {
  int rank = x.rank() - 2;
  bool fits = rank >= 1 && rank <= kSpatial && (spec.rank == 0 || spec.rank == rank) &&
              static_cast<int>(kernel.size()) == rank;
  if (!fits) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected [N, C] and ",
         spec.rank != 0 ? spec.rank : static_cast<int>(kernel.size()), " spatial axes");
  }
  Windows w;
  for (int i = 0; i < rank; ++i) {
    int axis = kSpatial - rank + i;
    w.in[axis] = x[2 + i];
    if (w.in[axis] == 0) {
      fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected no empty axis ",
           2 + i);
    }
    w.kernel[axis] = kernel[static_cast<size_t>(i)];
    if (spec.has_kernel && spec.kernel[axis] != w.kernel[axis]) {
      fail(ErrorKind::kShapeMismatch, "got a kernel of length ", w.kernel[axis], " along axis ",
           2 + i, ", expected ", spec.kernel[axis]);
    }
    w.stride[axis] = spec.stride[axis];
    w.dilation[axis] = spec.dilation[axis];
    int64_t extent = (w.kernel[axis] - 1) * w.dilation[axis] + 1;
    w.out[axis] = output_length(spec, w.in[axis], extent, axis);
    w.pad_begin[axis] = spec.pad_begin[axis];
    w.pad_end[axis] = spec.pad_end[axis];
    if (spec.auto_pad == WindowSpec::AutoPad::kNotSet) continue;
    int64_t total = 0;
    if (spec.auto_pad != WindowSpec::AutoPad::kValid) {
      total = std::max<int64_t>((w.out[axis] - 1) * w.stride[axis] + extent - w.in[axis], 0);
    }
    bool upper = spec.auto_pad == WindowSpec::AutoPad::kSameUpper;
    w.pad_begin[axis] = upper ? total / 2 : total - total / 2;
    w.pad_end[axis] = total - w.pad_begin[axis];
  }
  return w;
}

Windows windows_over(const WindowSpec& spec, const Shape& x) {
  return windows_over(spec, x,
                      {spec.kernel + kSpatial - spec.rank, static_cast<size_t>(spec.rank)});
}

Taps taps_inside(const Windows& w, int axis, int64_t out, int64_t limit) {
  int64_t first = out * w.stride[axis] - w.pad_begin[axis];
  int64_t d = w.dilation[axis];
  int64_t begin = first >= 0 ? 0 : (-first + d - 1) / d;
  int64_t end = first >= limit ? 0 : (limit - first + d - 1) / d;
  end = std::min(end, w.kernel[axis]);
  return {std::min(begin, end), end};
}

int64_t counted_taps(const Windows& w, int axis, int64_t out, bool count_pads) {
  if (!count_pads) {
    Taps taps = taps_inside(w, axis, out, w.in[axis]);
    return taps.end - taps.begin;
  }
  return taps_inside(w, axis, out, w.in[axis] + w.pad_end[axis]).end;
}

Shape channels_first(const Shape& shape, bool channels_last) {
  if (!channels_last || shape.rank() < 3) return shape;
  Shape result{shape[0], shape[shape.rank() - 1]};
  for (int axis = 1; axis + 1 < shape.rank(); ++axis) result.push_back(shape[axis]);
  return result;
}

Shape channels_last(const Shape& shape) {
  Shape result{shape[0]};
  for (int axis = 2; axis < shape.rank(); ++axis) result.push_back(shape[axis]);
  result.push_back(shape[1]);
  return result;
}

Shape output_shape(const Windows& w, const Shape& x, int64_t channels) {
  Shape y{x[0], channels};
  for (int i = 2; i < x.rank(); ++i) y.push_back(w.out[kSpatial - x.rank() + i]);
  return y;
}

}  // namespace headrace
