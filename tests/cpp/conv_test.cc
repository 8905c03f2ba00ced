#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "core/half.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::run_one;
using test::run_op;
using test::Tensor;
using test::Tensors;
using Ints = std::vector<int64_t>;
using Attributes = std::map<std::string, Attribute, std::less<>>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Tensor random_tensor(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of(shape, values);
}

std::unique_ptr<Op> make_op(Isa isa, const std::string& name, const Tensors& inputs,
                            const std::vector<size_t>& constants, const Attributes& attributes,
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

Planes planes_of(const Tensor& tensor) {
  Planes p{tensor.shape[0], tensor.shape[1], {1, 1, 1}, {}};
  int rank = tensor.shape.rank() - 2;
  for (int i = 0; i < rank; ++i) p.size[3 - rank + i] = tensor.shape[2 + i];
  for (float v : tensor.values<float>()) p.values.push_back(v);
  return p;
}

std::vector<double> conv_in_double(const Tensor& x, const Tensor& weight, const Tensor& bias,
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

void check_near(const Tensor& got, const std::vector<double>& expected, double tolerance) {
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

std::vector<ConvCase> conv_cases() {
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

HR_TEST(conv_agrees_with_double_precision) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      for (bool constant : {true, false}) {
        Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                      random_tensor({c.weight[0]}, 3)};
        std::vector<size_t> constants;
        if (constant) constants = {1, 2};
        auto op = make_op(isa, "Conv", in, constants, c.geometry.attributes(c.x.rank() - 2));
        check_near(run_one(*op, {DType::kF32}, in, 2)[0],
                   conv_in_double(in[0], in[1], in[2], c.geometry), 1e-4);
      }
    }
  }
}

HR_TEST(conv_bits_do_not_depend_on_the_batch_or_the_threads) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      std::vector<Tensors> requests;
      for (int64_t r = 0; r < 5; ++r) {
        Shape shape = c.x;
        shape[0] = 1;
        shape[2] += r;
        auto seed = static_cast<uint32_t>(r);
        requests.push_back({random_tensor(shape, seed), random_tensor(c.weight, 9)});
      }
      auto op = make_op(isa, "Conv", requests[0], {1}, c.geometry.attributes(c.x.rank() - 2));
      for (int threads : {1, 4}) {
        std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
        for (size_t r = 0; r < requests.size(); ++r) {
          Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
          HR_CHECK(alone.bytes == together[r][0].bytes);
        }
      }
    }
  }
}

// [N, C, spatial...] to [N, spatial..., C] or back.
Tensor turned(const Tensor& tensor, bool to_last) {
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

std::unique_ptr<Op> make_fused_conv(Isa isa, const Tensors& in, Attributes attributes) {
  attributes["layout"] = std::string("nhwc");
  std::vector<size_t> constants = {1};
  if (in.size() > 2) constants.push_back(2);
  return make_op(isa, "headrace.FusedConv", in, constants, attributes);
}

HR_TEST(fused_conv_works_channels_last) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                    random_tensor({c.weight[0]}, 3)};
      std::vector<double> expected = conv_in_double(in[0], in[1], in[2], c.geometry);
      in[0] = turned(in[0], true);
      auto op = make_fused_conv(isa, in, c.geometry.attributes(c.x.rank() - 2));
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      check_near(turned(y, false), expected, 1e-4);
    }
  }
}

HR_TEST(fused_conv_bits_do_not_depend_on_the_batch_or_the_threads) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      std::vector<Tensors> requests;
      for (int64_t r = 0; r < 6; ++r) {
        Shape shape = c.x;
        shape[0] = 1 + r % 2;
        if (r > 2) shape[2] += r;  // the first three run as one
        requests.push_back({turned(random_tensor(shape, static_cast<uint32_t>(r)), true),
                            random_tensor(c.weight, 9)});
      }
      auto op = make_fused_conv(isa, requests[0], c.geometry.attributes(c.x.rank() - 2));
      for (int threads : {1, 4}) {
        std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
        for (size_t r = 0; r < requests.size(); ++r) {
          Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
          HR_CHECK(alone.bytes == together[r][0].bytes);
        }
      }
    }
  }
}

HR_TEST(fused_conv_adds_the_residual_before_the_activation) {
  for (Isa isa : available_isas()) {
    for (int64_t groups : {1, 2, 6}) {
      for (bool residual : {true, false}) {
        Geometry g;
        g.groups = groups;
        Tensors in = {random_tensor({2, 6, 9, 8}, 1), random_tensor({6, 6 / groups, 3, 3}, 2),
                      random_tensor({6}, 3)};
        std::vector<double> expected = conv_in_double(in[0], in[1], in[2], g);
        in[0] = turned(in[0], true);
        if (residual) {
          Tensor added = random_tensor({2, 6, 7, 6}, 4);
          in.push_back(turned(added, true));
          std::vector<float> values = added.values<float>();
          for (size_t i = 0; i < expected.size(); ++i) expected[i] += values[i];
        }
        for (double& value : expected) value = std::min(1.5, std::max(-0.5, value));
        Attributes attributes = g.attributes(2);
        attributes["activation"] = std::string("clip");
        attributes["clip_min"] = -0.5;
        attributes["clip_max"] = 1.5;
        auto op = make_fused_conv(isa, in, attributes);
        check_near(turned(run_one(*op, {DType::kF32}, in)[0], false), expected, 2e-5);
      }
    }
  }
}

HR_TEST(depthwise_fused_conv_takes_any_activation_and_relu_keeps_nan) {
  for (Isa isa : available_isas()) {
    Geometry g;
    g.groups = 20;
    Tensors in = {random_tensor({1, 20, 6, 7}, 1), random_tensor({20, 1, 3, 3}, 2),
                  random_tensor({20}, 3)};
    std::vector<double> plain = conv_in_double(in[0], in[1], in[2], g);
    in[0] = turned(in[0], true);
    Attributes attributes = g.attributes(2);
    attributes["activation"] = std::string("silu");
    for (double& value : plain) value = value / (1.0 + std::exp(-value));
    auto silu = make_fused_conv(isa, in, attributes);
    check_near(turned(run_one(*silu, {DType::kF32}, in)[0], false), plain, 2e-5);
    attributes["activation"] = std::string("relu");
    auto relu = make_fused_conv(isa, in, attributes);
    in[0].bytes = Tensor::of(in[0].shape, std::vector<float>(20 * 6 * 7, kNan)).bytes;
    for (float value : run_one(*relu, {DType::kF32}, in)[0].values<float>()) {
      HR_CHECK(std::isnan(value));
    }
  }
}

Tensor rounded(const Tensor& x) {
  std::vector<BFloat16> values;
  for (float value : x.values<float>()) values.emplace_back(value);
  return Tensor::of(x.shape, values);
}

Tensor widened(const Tensor& x) {
  std::vector<float> values;
  for (BFloat16 value : x.values<BFloat16>()) values.push_back(value);
  return Tensor::of(x.shape, values);
}

// One channel per group is no product of matrices; the compiler leaves those in fp32.
bool multiplies(const ConvCase& c) {
  return c.x[0] > 0 && c.weight[1] > 1;
}

std::unique_ptr<Op> make_low_conv(Isa isa, const Tensors& in, const ConvCase& c,
                                  const char* precision, DType y) {
  Attributes attributes = c.geometry.attributes(c.x.rank() - 2);
  attributes["layout"] = std::string("nhwc");
  attributes["precision"] = std::string(precision);
  return make_op(isa, "headrace.FusedConv", in, {1, 2}, attributes, {y});
}

HR_TEST(bf16_conv_is_the_convolution_of_rounded_operands) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (!multiplies(c)) continue;
      Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                    random_tensor({c.weight[0]}, 3)};
      std::vector<double> expected =
          conv_in_double(widened(rounded(in[0])), widened(rounded(in[1])), in[2], c.geometry);
      in[0] = turned(in[0], true);
      auto op = make_low_conv(isa, in, c, "bf16", DType::kF32);
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      check_near(turned(y, false), expected, 1e-4);
    }
  }
}

HR_TEST(low_precision_conv_reads_and_writes_bfloat16) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (!multiplies(c)) continue;
      for (const char* precision : {"bf16", "int8"}) {
        Tensors narrow = {rounded(turned(random_tensor(c.x, 1), true)), random_tensor(c.weight, 2),
                          random_tensor({c.weight[0]}, 3)};
        Tensors wide = {widened(narrow[0]), narrow[1], narrow[2]};
        auto from_wide = make_low_conv(isa, wide, c, precision, DType::kF32);
        Tensor expected = run_one(*from_wide, {DType::kF32}, wide)[0];
        auto from_narrow = make_low_conv(isa, narrow, c, precision, DType::kBF16);
        Tensor got = run_one(*from_narrow, {DType::kBF16}, narrow, 3)[0];
        HR_CHECK(got.bytes == rounded(expected).bytes);
      }
    }
  }
}

HR_TEST(int8_conv_is_close_and_its_bits_do_not_depend_on_isa_or_batch) {
  for (const ConvCase& c : conv_cases()) {
    if (!multiplies(c)) continue;
    Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                  random_tensor({c.weight[0]}, 3)};
    std::vector<double> expected = conv_in_double(in[0], in[1], in[2], c.geometry);
    in[0] = turned(in[0], true);
    // Each operand is off by up to half of 1/127 of its largest value, some 4 here.
    double k = static_cast<double>(c.weight.elements(1, c.weight.rank()));
    std::vector<std::byte> first;
    for (Isa isa : available_isas()) {
      auto op = make_low_conv(isa, in, c, "int8", DType::kF32);
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      std::vector<float> got = turned(y, false).values<float>();
      for (size_t i = 0; i < got.size(); ++i) {
        HR_CHECK(std::abs(got[i] - expected[i]) < 0.15 * std::sqrt(k));
      }
      if (first.empty()) first = y.bytes;
      HR_CHECK(y.bytes == first);
      Tensor other = turned(random_tensor(c.x, 7), true);
      std::vector<Tensors> together =
          run_op(*op, {DType::kF32}, {{other, in[1], in[2]}, in, {other, in[1], in[2]}}, 4);
      HR_CHECK(together[1][0].bytes == first);
    }
  }
}

HR_TEST(conv_pads_as_auto_pad_says) {
  auto shape_of = [](const std::string& auto_pad, int64_t length) {
    Tensors in = {random_tensor({1, 1, length}, 1), random_tensor({1, 1, 3}, 2)};
    auto op =
        make_op(Isa::kReference, "Conv", in, {}, {{"auto_pad", auto_pad}, {"strides", Ints{2}}});
    return run_one(*op, {DType::kF32}, in)[0].values<float>();
  };
  // Length 4, kernel 3, stride 2: one pad, behind for UPPER and before for LOWER.
  Tensors in = {random_tensor({1, 1, 4}, 1), random_tensor({1, 1, 3}, 2)};
  Geometry upper, lower;
  upper.stride[2] = lower.stride[2] = 2;
  upper.end[2] = lower.begin[2] = 1;
  auto close = [&](const std::vector<float>& got, const Geometry& g) {
    std::vector<double> expected = conv_in_double(in[0], in[1], Tensor{}, g);
    HR_CHECK_EQ(got.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) HR_CHECK_NEAR(got[i], expected[i], 1e-6);
  };
  close(shape_of("SAME_UPPER", 4), upper);
  close(shape_of("SAME_LOWER", 4), lower);
  HR_CHECK_EQ(shape_of("VALID", 6).size(), 2u);
}

HR_TEST(conv_refuses_what_does_not_fit) {
  Tensors in = {random_tensor({1, 3, 8, 8}, 1), random_tensor({2, 4, 3, 3}, 2)};
  auto op = make_op(Isa::kReference, "Conv", in, {1}, {});
  HR_CHECK_THROWS(run_one(*op, {DType::kF32}, in), Error);
  Tensors doubles = {Tensor::of<double>({1, 1, 2}, {1, 2}), Tensor::of<double>({1, 1, 1}, {1})};
  HR_CHECK_THROWS(make_op(Isa::kReference, "Conv", doubles, {}, {}), Error);
}

// ConvTranspose is the transpose of Conv: <conv(y), x> = <y, conv_transpose(x)> for all x and y.
HR_TEST(conv_transpose_is_the_transpose_of_conv) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (c.x[0] == 0) continue;
      Tensor y = random_tensor(c.x, 1), weight = random_tensor(c.weight, 2);
      Attributes attributes = c.geometry.attributes(c.x.rank() - 2);
      auto conv = make_op(isa, "Conv", {y, weight}, {}, attributes);
      Tensor shape_like = run_one(*conv, {DType::kF32}, {y, weight})[0];
      Tensor x = random_tensor(shape_like.shape, 3);
      // Where the stride leaves a remainder, Y's end lies outside every window.
      Ints output_padding;
      int rank = c.x.rank() - 2;
      for (int i = 0; i < rank; ++i) {
        int axis = 3 - rank + i;
        const Geometry& g = c.geometry;
        int64_t room =
            c.x[2 + i] + g.begin[axis] + g.end[axis] - (c.weight[2 + i] - 1) * g.dilation[axis] - 1;
        output_padding.push_back(room % g.stride[axis]);
      }
      attributes["output_padding"] = output_padding;
      auto transpose = make_op(isa, "ConvTranspose", {x, weight}, {}, attributes);
      Tensor back = run_one(*transpose, {DType::kF32}, {x, weight}, 2)[0];
      HR_CHECK_EQ(to_string(back.shape), to_string(y.shape));
      auto dot = [](const Tensor& a, const Tensor& b) {
        std::vector<float> u = a.values<float>(), v = b.values<float>();
        double sum = 0;
        for (size_t i = 0; i < u.size(); ++i) sum += double{u[i]} * v[i];
        return sum;
      };
      HR_CHECK_NEAR(dot(shape_like, x), dot(y, back), 1e-5);
    }
  }
}

HR_TEST(conv_transpose_adds_the_bias_and_takes_an_output_shape) {
  Tensors in = {Tensor::of<float>({1, 1, 2}, {1, 10}), Tensor::of<float>({1, 1, 3}, {1, 2, 3}),
                Tensor::of<float>({1}, {0.5})};
  auto run = [&](Attributes attributes) {
    attributes["strides"] = Ints{2};
    auto op = make_op(Isa::kReference, "ConvTranspose", in, {}, attributes);
    return run_one(*op, {DType::kF32}, in)[0].values<float>();
  };
  HR_CHECK(run({}) == (std::vector<float>{1.5, 2.5, 13.5, 20.5, 30.5}));
  HR_CHECK(run({{"output_shape", Ints{4}}, {"auto_pad", std::string("SAME_UPPER")}}) ==
           (std::vector<float>{1.5, 2.5, 13.5, 20.5}));
  HR_CHECK(run({{"output_shape", Ints{6}}}) ==
           (std::vector<float>{1.5, 2.5, 13.5, 20.5, 30.5, 0.5}));
  HR_CHECK(run({{"auto_pad", std::string("SAME_LOWER")}}) ==
           (std::vector<float>{2.5, 13.5, 20.5, 30.5}));
}

template <class T>
std::vector<T> pool(const std::string& name, const Tensor& x, const Attributes& attributes) {
  auto op = make_op(Isa::kReference, name, {x}, {}, attributes, {x.dtype});
  return run_one(*op, {x.dtype}, {x}, 2)[0].values<T>();
}

HR_TEST(pools_give_the_same_channels_last) {
  Tensor x = random_tensor({2, 19, 9, 11}, 1);
  std::vector<float> values = x.values<float>();
  values[5] = kNan;
  x = Tensor::of(x.shape, values);
  Attributes strided = {{"kernel_shape", Ints{3, 2}},
                        {"strides", Ints{2, 1}},
                        {"pads", Ints{1, 0, 1, 1}},
                        {"dilations", Ints{1, 2}}};
  Attributes counting = strided, ceiling = strided;
  counting["count_include_pad"] = int64_t{1};
  ceiling["ceil_mode"] = int64_t{1};
  for (Isa isa : available_isas()) {
    for (const Attributes& attributes : {strided, counting, ceiling}) {
      for (std::string name : {"MaxPool", "AveragePool"}) {
        auto first = make_op(isa, name, {x}, {}, attributes);
        Attributes last_attributes = attributes;
        last_attributes["layout"] = std::string("nhwc");
        auto last = make_op(isa, "headrace." + name, {x}, {}, last_attributes);
        std::vector<float> expected = run_one(*first, {DType::kF32}, {x})[0].values<float>();
        Tensor y = turned(run_one(*last, {DType::kF32}, {turned(x, true)}, 3)[0], false);
        std::vector<float> got = y.values<float>();
        HR_CHECK_EQ(got.size(), expected.size());
        for (size_t i = 0; i < expected.size(); ++i) {
          bool both_nan = std::isnan(got[i]) && std::isnan(expected[i]);
          HR_CHECK(both_nan || std::abs(got[i] - expected[i]) < 1e-6f);
        }
      }
    }
  }
}

HR_TEST(max_pool_ignores_pads_and_keeps_nan) {
  Tensor x = Tensor::of<float>({1, 2, 4}, {-5, -2, -3, -7, 1, kNan, 2, 0});
  std::vector<float> y =
      pool<float>("MaxPool", x, {{"kernel_shape", Ints{3}}, {"pads", Ints{1, 1}}});
  HR_CHECK((std::vector<float>(y.begin(), y.begin() + 4) == std::vector<float>{-2, -2, -2, -3}));
  HR_CHECK(std::isnan(y[4]) && std::isnan(y[5]) && std::isnan(y[6]));
  HR_CHECK_EQ(y[7], 2.0f);
  Tensor bytes = Tensor::of<int8_t>({1, 1, 4}, {-5, -2, -3, -7});
  HR_CHECK(pool<int8_t>("MaxPool", bytes, {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}}) ==
           (std::vector<int8_t>{-2, -3}));
}

HR_TEST(max_pool_gives_indices) {
  Tensor x = Tensor::of<float>({1, 2, 2, 3}, {1, 4, 4, 0, 2, 3, 9, 8, 7, 6, 5, 9});
  auto indices = [&](int64_t storage_order) {
    auto op = make_op(Isa::kReference, "MaxPool", {x}, {},
                      {{"kernel_shape", Ints{2, 2}}, {"storage_order", storage_order}},
                      {DType::kF32, DType::kI64});
    Tensors y = run_one(*op, {DType::kF32, DType::kI64}, {x});
    HR_CHECK(y[0].values<float>() == (std::vector<float>{4, 4, 9, 9}));
    return y[1].values<int64_t>();
  };
  HR_CHECK(indices(0) == (Ints{1, 1, 6, 11}));
  HR_CHECK(indices(1) == (Ints{2, 2, 6, 11}));
}

HR_TEST(pools_round_up_in_ceil_mode) {
  Tensor x = Tensor::of<float>({1, 1, 5}, {1, 2, 3, 4, 5});
  Attributes up = {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}, {"ceil_mode", int64_t{1}}};
  HR_CHECK(pool<float>("MaxPool", x, up) == (std::vector<float>{2, 4, 5}));
  HR_CHECK(pool<float>("AveragePool", x, up) == (std::vector<float>{1.5, 3.5, 5}));
  // The pads count, what ceil_mode adds behind them does not.
  up["pads"] = Ints{0, 1};
  up["strides"] = Ints{3};
  up["kernel_shape"] = Ints{4};
  up["count_include_pad"] = int64_t{1};
  HR_CHECK(pool<float>("AveragePool", x, up) == (std::vector<float>{2.5, 3}));
  // A last window that would start in the pads is dropped.
  Attributes drop = {{"kernel_shape", Ints{1}},
                     {"strides", Ints{5}},
                     {"ceil_mode", int64_t{1}},
                     {"pads", Ints{0, 1}}};
  HR_CHECK(pool<float>("MaxPool", x, drop) == (std::vector<float>{1}));
}

HR_TEST(average_pool_counts_pads_on_demand) {
  Tensor x = Tensor::of<float>({1, 1, 2, 2}, {1, 2, 3, 6});
  Attributes a = {{"kernel_shape", Ints{2, 2}}, {"pads", Ints{1, 1, 0, 0}}};
  HR_CHECK(pool<float>("AveragePool", x, a) == (std::vector<float>{1, 1.5, 2, 3}));
  a["count_include_pad"] = int64_t{1};
  HR_CHECK(pool<float>("AveragePool", x, a) == (std::vector<float>{0.25, 0.75, 1, 3}));
}

HR_TEST(other_pools_reduce_what_they_should) {
  Tensor x = Tensor::of<float>({1, 2, 4}, {3, -4, 0, 12, 1, -1, 1, -1});
  Attributes lp = {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}};
  HR_CHECK(pool<float>("LpPool", x, lp) ==
           (std::vector<float>{5, 12, std::sqrt(2.0f), std::sqrt(2.0f)}));
  lp["p"] = int64_t{1};
  HR_CHECK(pool<float>("LpPool", x, lp) == (std::vector<float>{7, 12, 2, 2}));
  HR_CHECK(pool<float>("GlobalAveragePool", x, {}) == (std::vector<float>{2.75, 0}));
  HR_CHECK(pool<float>("GlobalMaxPool", x, {}) == (std::vector<float>{12, 1}));
  std::vector<float> norms = pool<float>("GlobalLpPool", x, {});
  HR_CHECK_NEAR(norms[0], 13, 1e-6);
  HR_CHECK_NEAR(norms[1], 2, 1e-6);
}

}  // namespace
}  // namespace headrace
