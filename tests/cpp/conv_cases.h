// What the tests of convolutions share: cases, a convolution in double precision, layouts.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "op_harness.h"

namespace headrace::test {

using Ints = std::vector<int64_t>;
using Attributes = std::map<std::string, Attribute, std::less<>>;

inline Tensor random_tensor(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of(shape, values);
}

inline std::unique_ptr<Op> make_op(Isa isa, const std::string& name, const Tensors& inputs,
                                   const std::vector<size_t>& constants,
                                   const Attributes& attributes,
                                   std::vector<DType> outputs = {DType::kF32}) {
  NodeSpec spec;
  spec.op = name;
  spec.isa = isa;
  spec.opset = 22;
  spec.attributes = attributes;
  spec.constants.resize(inputs.size());
  for (const Tensor& input : inputs) spec.input_dtypes.push_back(input.dtype);
  for (size_t i : constants) {
    if (inputs[i].dtype != DType::kNone) spec.constants[i] = inputs[i].view();
  }
  spec.output_dtypes = std::move(outputs);
  return OpRegistry::global().make(spec);
}

// A 3-D convolution with everything explicit, in double precision; fewer axes have length 1.
struct Geometry {
  int64_t stride[3] = {1, 1, 1};
  int64_t dilation[3] = {1, 1, 1};
  int64_t begin[3] = {};
  int64_t end[3] = {};
  int64_t groups = 1;

  Attributes attributes(int rank) const {
    Ints strides, dilations, pads;
    for (int i = 3 - rank; i < 3; ++i) {
      strides.push_back(stride[i]);
      dilations.push_back(dilation[i]);
      pads.push_back(begin[i]);
    }
    for (int i = 3 - rank; i < 3; ++i) pads.push_back(end[i]);
    return {{"strides", strides}, {"dilations", dilations}, {"pads", pads}, {"group", groups}};
  }
};

struct Planes {
  int64_t n, c, size[3];
  std::vector<double> values;
  double at(int64_t image, int64_t channel, int64_t d, int64_t h, int64_t w) const {
    if (d < 0 || h < 0 || w < 0 || d >= size[0] || h >= size[1] || w >= size[2]) return 0;
    return values[static_cast<size_t>(
        (((image * c + channel) * size[0] + d) * size[1] + h) * size[2] + w)];
  }
};

inline Planes planes_of(const Tensor& tensor) {
  Planes p{tensor.shape[0], tensor.shape[1], {1, 1, 1}, {}};
  int rank = tensor.shape.rank() - 2;
  for (int i = 0; i < rank; ++i) p.size[3 - rank + i] = tensor.shape[2 + i];
  for (float v : tensor.values<float>()) p.values.push_back(v);
  return p;
}

inline std::vector<double> conv_in_double(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                          const Geometry& g) {
  Planes in = planes_of(x), w = planes_of(weight);
  std::vector<float> b = bias.values<float>();
  int64_t out[3];
  for (int i = 0; i < 3; ++i) {
    out[i] =
        (in.size[i] + g.begin[i] + g.end[i] - (w.size[i] - 1) * g.dilation[i] - 1) / g.stride[i] +
        1;
  }
  std::vector<double> y;
  for (int64_t i = 0; i < in.n * w.n * out[0] * out[1] * out[2]; ++i) {
    int64_t rest = i, at[3];
    for (int axis = 2; axis >= 0; --axis) {
      at[axis] = rest % out[axis] * g.stride[axis] - g.begin[axis];
      rest /= out[axis];
    }
    int64_t m = rest % w.n, image = rest / w.n;
    double sum = b.empty() ? 0.0 : b[static_cast<size_t>(m)];
    for (int64_t c = 0; c < w.c; ++c) {
      int64_t channel = m / (w.n / g.groups) * w.c + c;
      for (int64_t d = 0; d < w.size[0]; ++d) {
        for (int64_t h = 0; h < w.size[1]; ++h) {
          for (int64_t k = 0; k < w.size[2]; ++k) {
            sum +=
                w.at(m, c, d, h, k) * in.at(image, channel, at[0] + d * g.dilation[0],
                                            at[1] + h * g.dilation[1], at[2] + k * g.dilation[2]);
          }
        }
      }
    }
    y.push_back(sum);
  }
  return y;
}

inline void check_near(const Tensor& got, const std::vector<double>& expected, double tolerance) {
  std::vector<float> values = got.values<float>();
  HR_CHECK_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size() && i < expected.size(); ++i) {
    HR_CHECK_NEAR(values[i], expected[i], tolerance);
  }
}

struct ConvCase {
  Shape x, weight;
  Geometry geometry;
};

inline std::vector<ConvCase> conv_cases() {
  Geometry plain, padded, strided, dilated, grouped, depthwise, wide;
  padded.begin[1] = padded.begin[2] = padded.end[1] = padded.end[2] = 1;
  strided = padded;
  strided.stride[1] = strided.stride[2] = 2;
  dilated = padded;
  dilated.dilation[1] = 2;
  dilated.dilation[2] = 3;
  dilated.begin[2] = 4;
  grouped = padded;
  grouped.groups = 3;
  depthwise = strided;
  depthwise.groups = 5;
  wide.begin[0] = 2;
  wide.end[1] = 3;
  wide.stride[0] = 2;
  wide.dilation[1] = 2;
  Geometry depthwise_same = padded;
  depthwise_same.groups = 5;
  return {
      {{2, 3, 9, 11}, {4, 3, 3, 3}, plain},
      {{1, 3, 20, 37}, {17, 3, 3, 3}, padded},
      {{2, 40, 14, 14}, {70, 40, 1, 1}, plain},
      {{1, 64, 7, 7}, {30, 64, 3, 3}, padded},
      {{1, 3, 23, 23}, {8, 3, 7, 7}, strided},
      {{1, 8, 9, 10}, {5, 8, 1, 1}, strided},
      {{1, 4, 12, 13}, {6, 4, 3, 2}, dilated},
      {{2, 6, 8, 9}, {9, 2, 3, 3}, grouped},
      {{2, 5, 17, 35}, {10, 1, 3, 3}, depthwise},
      {{2, 5, 17, 35}, {5, 1, 5, 3}, depthwise_same},
      {{2, 3, 50}, {4, 3, 5}, plain},
      {{1, 2, 5, 6, 7}, {3, 2, 2, 3, 2}, wide},
      {{0, 3, 9, 11}, {4, 3, 3, 3}, plain},
  };
}

// [N, C, spatial...] to [N, spatial..., C] or back.
inline Tensor turned(const Tensor& tensor, bool to_last) {
  Shape shape{tensor.shape[0]};
  if (!to_last) shape.push_back(tensor.shape[tensor.shape.rank() - 1]);
  for (int i = to_last ? 2 : 1; i < tensor.shape.rank() - (to_last ? 0 : 1); ++i) {
    shape.push_back(tensor.shape[i]);
  }
  if (to_last) shape.push_back(tensor.shape[1]);
  int64_t channels = to_last ? tensor.shape[1] : tensor.shape[tensor.shape.rank() - 1];
  int64_t images = tensor.shape[0];
  int64_t pixels = tensor.shape.elements() / std::max<int64_t>(images * channels, 1);
  std::vector<float> from = tensor.values<float>(), to(from.size());
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < pixels; ++p) {
        auto first = static_cast<size_t>((n * channels + c) * pixels + p);
        auto last = static_cast<size_t>((n * pixels + p) * channels + c);
        if (to_last) {
          to[last] = from[first];
        } else {
          to[first] = from[last];
        }
      }
    }
  }
  return Tensor::of(shape, to);
}

inline std::unique_ptr<Op> make_fused_conv(Isa isa, const Tensors& in, Attributes attributes) {
  attributes["layout"] = std::string("nhwc");
  std::vector<size_t> constants = {1};
  if (in.size() > 2) constants.push_back(2);
  return make_op(isa, "headrace.FusedConv", in, constants, attributes);
}

inline Tensor rounded(const Tensor& x) {
  std::vector<BFloat16> values;
  for (float value : x.values<float>()) values.emplace_back(value);
  return Tensor::of(x.shape, values);
}

inline Tensor widened(const Tensor& x) {
  std::vector<float> values;
  for (BFloat16 value : x.values<BFloat16>()) values.push_back(value);
  return Tensor::of(x.shape, values);
}

}  // namespace headrace::test
