// Products and convolutions of statically quantised bytes, on every ISA: the same bits as plain
// loops over integers.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "linear_cases.h"

namespace headrace {
namespace {

using test::make_op;
using test::run_one;
using test::Tensor;
using test::Tensors;

constexpr float kXScale = 0.03f, kYScale = 0.7f, kResidualScale = 0.4f, kProductScale = 0.5f;
constexpr int kXZero = 117, kYZero = 9, kResidualZero = 100, kProductZero = 131;

template <class T>
Tensor random_integers(Shape shape, int low, int high, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> uniform(low, high);
  std::vector<T> values(static_cast<size_t>(shape.elements()));
  for (T& value : values) value = static_cast<T>(uniform(random));
  return Tensor::of(shape, values);
}

Tensor random_scales(int64_t count) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(0.002f, 0.02f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return Tensor::of({count}, values);
}

// Bytes X, Y and residual are int8 if `is_signed`.
std::map<std::string, Attribute, std::less<>> attributes_of(bool is_signed, bool rounds) {
  int64_t shift = is_signed ? 128 : 0;
  std::map<std::string, Attribute, std::less<>> attributes{
      {"x_scale", double{kXScale}},
      {"x_zero_point", kXZero - shift},
      {"y_scale", double{kYScale}},
      {"y_zero_point", kYZero - shift},
      {"residual_scale", double{kResidualScale}},
      {"residual_zero_point", kResidualZero - shift},
      {"activation", std::string("relu")}};
  if (rounds) {
    attributes["product_scale"] = double{kProductScale};
    attributes["product_zero_point"] = int64_t{kProductZero};
  }
  return attributes;
}

// What becomes of a sum of (x - zero) * w, as uint8, as ops/linear/static_int8.h has it.
int finished(int64_t sum, float scale, int64_t bias, int residual, bool rounds) {
  double first = rounds ? double{kProductScale} : double{kYScale};
  auto factor = static_cast<float>(double{kXScale} * double{scale} / first);
  float x = static_cast<float>(sum + bias) * factor;
  if (rounds) {
    x = std::rint(std::clamp(x, -float{kProductZero}, 255.0f - kProductZero));
    x = x * static_cast<float>(double{kProductScale} / double{kYScale});
  }
  float r = static_cast<float>(residual - kResidualZero);
  x = x + r * static_cast<float>(double{kResidualScale} / double{kYScale});
  return static_cast<int>(std::rint(std::clamp(x, 0.0f, 255.0f - kYZero))) + kYZero;
}

int byte_at(const Tensor& tensor, size_t i) {
  int byte = static_cast<int>(tensor.bytes[i]);
  return tensor.dtype == DType::kI8 ? byte ^ 0x80 : byte;
}

std::vector<int> integers_of(const Tensor& tensor) {
  std::vector<int> all;
  if (tensor.dtype == DType::kI8) {
    for (int8_t value : tensor.values<int8_t>()) all.push_back(value);
  } else {
    for (int16_t value : tensor.values<int16_t>()) all.push_back(value);
  }
  return all;
}

Tensor random_bytes(Shape shape, bool is_signed, uint32_t seed) {
  return is_signed ? random_integers<int8_t>(shape, -128, 127, seed)
                   : random_integers<uint8_t>(shape, 0, 255, seed);
}

Tensor random_weights(Shape shape, bool wide) {
  return wide ? random_integers<int16_t>(shape, -255, 255, 2)
              : random_integers<int8_t>(shape, -128, 127, 2);
}

HR_TEST(quantized_linear_is_the_product_of_integers) {
  struct Case {
    int64_t rows, k, n;
  };
  // Whole and broken words, blocks, tiles and panels.
  const Case cases[] = {{1, 1, 1}, {2, 385, 65}, {3, 7, 130}, {13, 1601, 33}, {29, 1536, 40}};
  for (const Case& c : cases) {
    for (int variant = 0; variant < 4; ++variant) {
      bool is_signed = variant & 1, wide = variant & 2, rounds = variant == 0 || variant == 3;
      Tensors in = {random_bytes({c.rows, c.k}, is_signed, 1), random_weights({c.k, c.n}, wide),
                    random_scales(c.n), random_integers<int32_t>({c.n}, -9000, 9000, 4),
                    random_bytes({c.rows, c.n}, is_signed, 5)};
      std::vector<float> scales = in[2].values<float>();
      std::vector<int32_t> bias = in[3].values<int32_t>();
      std::vector<int> x, w = integers_of(in[1]), want;
      for (size_t i = 0; i < in[0].bytes.size(); ++i) x.push_back(byte_at(in[0], i) - kXZero);
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t j = 0; j < c.n; ++j) {
          int64_t sum = 0;
          for (int64_t i = 0; i < c.k; ++i) {
            sum += x[static_cast<size_t>(r * c.k + i)] * w[static_cast<size_t>(i * c.n + j)];
          }
          auto at = static_cast<size_t>(r * c.n + j);
          want.push_back(finished(sum, scales[static_cast<size_t>(j)], bias[static_cast<size_t>(j)],
                                  byte_at(in[4], at), rounds));
        }
      }
      for (Isa isa : available_isas()) {
        auto op = make_op(isa, "headrace.QuantizedLinear", in, {1, 2, 3},
                          attributes_of(is_signed, rounds));
        for (int threads : {1, 3}) {
          Tensor y = run_one(*op, {in[0].dtype}, in, threads)[0];
          int wrong = 0;
          for (size_t i = 0; i < want.size(); ++i) wrong += byte_at(y, i) != want[i];
          HR_CHECK_EQ(wrong, 0);
        }
      }
    }
  }
}

HR_TEST(quantized_conv_is_the_convolution_of_integers) {
  struct Case {
    int64_t in, out, groups, kernel, stride;
  };
  const Case cases[] = {{3, 40, 1, 3, 1},   {70, 33, 1, 1, 1},  {8, 12, 4, 3, 2},
                        {37, 37, 37, 3, 1}, {91, 91, 91, 3, 2}, {180, 9, 1, 3, 1}};
  const int64_t height = 6, width = 7, pad = 1;
  for (const Case& c : cases) {
    for (int variant = 0; variant < 4; ++variant) {
      bool is_signed = variant & 1, wide = variant & 2, rounds = variant == 1 || variant == 2;
      int64_t rows = (height + 2 * pad - c.kernel) / c.stride + 1;
      int64_t cols = (width + 2 * pad - c.kernel) / c.stride + 1;
      int64_t group_in = c.in / c.groups, group_out = c.out / c.groups;
      Tensors in = {random_bytes({2, height, width, c.in}, is_signed, 1),
                    random_weights({c.out, group_in, c.kernel, c.kernel}, wide),
                    random_scales(c.out), random_integers<int32_t>({c.out}, -9000, 9000, 4),
                    random_bytes({2, rows, cols, c.out}, is_signed, 5)};
      std::vector<float> scales = in[2].values<float>();
      std::vector<int32_t> bias = in[3].values<int32_t>();
      std::vector<int> want, w = integers_of(in[1]);
      for (int64_t at = 0; at < 2 * rows * cols * c.out; ++at) {
        int64_t o = at % c.out, col = at / c.out % cols, row = at / (c.out * cols) % rows;
        int64_t image = at / (c.out * cols * rows), sum = 0;
        for (int64_t t = 0; t < c.kernel * c.kernel; ++t) {
          int64_t h = row * c.stride - pad + t / c.kernel, v = col * c.stride - pad + t % c.kernel;
          if (h < 0 || h >= height || v < 0 || v >= width) continue;
          for (int64_t i = 0; i < group_in; ++i) {
            int64_t channel = o / group_out * group_in + i;
            int64_t x = ((image * height + h) * width + v) * c.in + channel;
            sum += (byte_at(in[0], static_cast<size_t>(x)) - kXZero) *
                   w[static_cast<size_t>((o * group_in + i) * c.kernel * c.kernel + t)];
          }
        }
        want.push_back(finished(sum, scales[static_cast<size_t>(o)], bias[static_cast<size_t>(o)],
                                byte_at(in[4], static_cast<size_t>(at)), rounds));
      }
      auto attributes = attributes_of(is_signed, rounds);
      attributes["layout"] = std::string("nhwc");
      attributes["group"] = c.groups;
      attributes["strides"] = std::vector<int64_t>{c.stride, c.stride};
      attributes["pads"] = std::vector<int64_t>{pad, pad, pad, pad};
      for (Isa isa : available_isas()) {
        auto op = make_op(isa, "headrace.QuantizedConv", in, {1, 2, 3}, attributes);
        for (int threads : {1, 3}) {
          Tensor y = run_one(*op, {in[0].dtype}, in, threads)[0];
          int wrong = 0;
          for (size_t i = 0; i < want.size(); ++i) wrong += byte_at(y, i) != want[i];
          HR_CHECK_EQ(wrong, 0);
        }
      }
    }
  }
}

HR_TEST(matmul_integer_with_constant_weights_is_exact) {
  const int64_t rows = 17, k = 131, n = 40;
  for (bool is_signed : {false, true}) {
    for (int b_zero : {128, 77}) {
      Tensors in = {random_bytes({rows, k}, is_signed, 1), random_bytes({k, n}, false, 2),
                    random_bytes({}, is_signed, 3),
                    Tensor::of<uint8_t>({}, {static_cast<uint8_t>(b_zero)})};
      std::vector<int32_t> want;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < n; ++j) {
          int32_t sum = 0;
          for (int64_t i = 0; i < k; ++i) {
            sum += (byte_at(in[0], static_cast<size_t>(r * k + i)) - byte_at(in[2], 0)) *
                   (byte_at(in[1], static_cast<size_t>(i * n + j)) - b_zero);
          }
          want.push_back(sum);
        }
      }
      for (Isa isa : available_isas()) {
        auto op = make_op(isa, "MatMulInteger", in, {1, 3});
        for (int threads : {1, 3}) {
          HR_CHECK(run_one(*op, {DType::kI32}, in, threads)[0].values<int32_t>() == want);
        }
      }
    }
  }
}

}  // namespace
}  // namespace headrace
