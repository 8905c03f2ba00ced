// Linear in bf16 and int8, on every ISA: those with instructions for it and those without.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "linear_cases.h"
#include "ops/linear/gemm.h"

namespace headrace {
namespace {

using test::make_op;
using test::random_tensor;
using test::run_one;
using test::run_op;
using test::Tensor;
using test::Tensors;

struct Case {
  int64_t rows, k, n;
};
// Whole and broken words, blocks, tiles and panels.
const Case kCases[] = {{1, 1, 1},   {1, 7, 130},    {2, 385, 65},   {3, 767, 129}, {5, 64, 31},
                       {13, 9, 33}, {15, 1601, 32}, {29, 1536, 40}, {100, 33, 47}};

Tensor rounded(const Tensor& x) {
  std::vector<BFloat16> values;
  for (float value : x.values<float>()) values.emplace_back(value);
  return Tensor::of(x.shape, values);
}

std::vector<float> as_floats(const Tensor& x) {
  if (x.dtype == DType::kF32) return x.values<float>();
  std::vector<float> values;
  for (BFloat16 value : x.values<BFloat16>()) values.push_back(value);
  return values;
}

std::unique_ptr<Op> make_linear(Isa isa, const Tensors& in, const char* precision,
                                const char* activation = "none") {
  return make_op(isa, "headrace.Linear", in, {1, 2},
                 {{"activation", std::string(activation)}, {"precision", std::string(precision)}});
}

// Products of bfloat16 are exact in double, and so all but exact are their sums.
HR_TEST(bf16_linear_is_the_product_of_rounded_operands) {
  for (Isa isa : available_isas()) {
    for (const Case& c : kCases) {
      Tensors in = {random_tensor({c.rows, c.k}, 1), random_tensor({c.k, c.n}, 2),
                    random_tensor({c.n}, 3), random_tensor({c.rows, c.n}, 4)};
      std::vector<float> x = as_floats(rounded(in[0])), w = as_floats(rounded(in[1]));
      std::vector<float> bias = as_floats(in[2]), residual = as_floats(in[3]);
      std::vector<float> y =
          run_one(*make_linear(isa, in, "bf16", "relu"), {DType::kF32}, in)[0].values<float>();
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t j = 0; j < c.n; ++j) {
          double sum = bias[static_cast<size_t>(j)];
          for (int64_t i = 0; i < c.k; ++i) {
            sum +=
                double{x[static_cast<size_t>(r * c.k + i)]} * w[static_cast<size_t>(i * c.n + j)];
          }
          auto at = static_cast<size_t>(r * c.n + j);
          HR_CHECK_NEAR(y[at], std::max(sum, 0.0) + residual[at], 1e-4);
        }
      }
    }
  }
}

HR_TEST(bf16_linear_reads_and_writes_bfloat16) {
  for (Isa isa : available_isas()) {
    Tensors in = {random_tensor({9, 70}, 1), random_tensor({70, 45}, 2), random_tensor({45}, 3)};
    for (const char* precision : {"bf16", "int8"}) {
      Tensors narrow = {rounded(in[0]), in[1], in[2]};
      Tensors wide = {Tensor::of(in[0].shape, as_floats(narrow[0])), in[1], in[2]};
      Tensor expected = run_one(*make_linear(isa, wide, precision), {DType::kF32}, wide)[0];
      Tensor same = run_one(*make_linear(isa, narrow, precision), {DType::kF32}, narrow)[0];
      HR_CHECK(expected.bytes == same.bytes);
      Tensor y = run_one(*make_linear(isa, narrow, precision), {DType::kBF16}, narrow)[0];
      HR_CHECK(y.bytes == rounded(expected).bytes);
    }
  }
}

struct Quantized {
  std::vector<double> values;
  double step;
};

Quantized quantize_row(const std::vector<float>& x) {
  float low = std::min(0.0f, *std::ranges::min_element(x));
  float high = std::max(0.0f, *std::ranges::max_element(x));
  float inverse = 255.0f / (high - low);
  float zero = std::nearbyint(-low * inverse);
  Quantized q{{}, double{(high - low) / 255.0f}};
  for (float value : x) {
    q.values.push_back(std::nearbyint(std::clamp(value * inverse + zero, 0.0f, 255.0f)) - zero);
  }
  return q;
}

Quantized quantize_column(const std::vector<float>& x) {
  float top = 0.0f;
  for (float value : x) top = std::max(top, std::abs(value));
  Quantized q{{}, double{top / 127.0f}};
  for (float value : x) q.values.push_back(std::nearbyint(value * (127.0f / top)));
  return q;
}

HR_TEST(int8_linear_is_the_product_of_quantized_operands_and_the_same_on_every_isa) {
  for (const Case& c : kCases) {
    Tensors in = {random_tensor({c.rows, c.k}, 1), random_tensor({c.k, c.n}, 2), Tensor{},
                  random_tensor({c.rows, c.n}, 4)};
    Tensor first;
    for (Isa isa : available_isas()) {
      Tensor y = run_one(*make_linear(isa, in, "int8"), {DType::kF32}, in)[0];
      if (isa == available_isas().front()) first = y;
      HR_CHECK(y.bytes == first.bytes);
    }
    std::vector<float> x = in[0].values<float>(), w = in[1].values<float>(),
                       residual = in[3].values<float>(), y = first.values<float>();
    for (int64_t j = 0; j < c.n; ++j) {
      std::vector<float> column;
      for (int64_t i = 0; i < c.k; ++i) column.push_back(w[static_cast<size_t>(i * c.n + j)]);
      Quantized b = quantize_column(column);
      for (int64_t r = 0; r < c.rows; ++r) {
        auto row = x.begin() + r * c.k;
        Quantized a = quantize_row({row, row + c.k});
        double sum = 0;
        for (size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
        auto at = static_cast<size_t>(r * c.n + j);
        double expected = sum * a.step * b.step;
        HR_CHECK_NEAR(y[at] - residual[at], expected, 1e-5 + 1e-6 * std::abs(expected));
      }
    }
  }
}

HR_TEST(int8_linear_shows_what_is_not_finite_and_keeps_zeros) {
  const float inf = std::numeric_limits<float>::infinity();
  for (Isa isa : available_isas()) {
    Tensor w = random_tensor({40, 5}, 2);
    std::vector<float> x(4 * 40, 1.0f);
    x[7] = std::nanf("");
    x[40 + 39] = -inf;
    for (size_t i = 0; i < 40; ++i) x[80 + i] = 0.0f;
    Tensors in = {Tensor::of<float>({4, 40}, x), w, Tensor{}};
    std::vector<float> y =
        run_one(*make_linear(isa, in, "int8"), {DType::kF32}, in)[0].values<float>();
    for (size_t j = 0; j < 5; ++j) {
      HR_CHECK(std::isnan(y[j]));
      HR_CHECK(std::isnan(y[5 + j]));
      HR_CHECK_EQ(y[10 + j], 0.0f);
      HR_CHECK(std::isfinite(y[15 + j]) && y[15 + j] != 0.0f);
    }
  }
}

HR_TEST(low_precision_bits_of_a_row_depend_on_the_row_alone) {
  const int64_t k = 801, n = 77;
  Tensor w = random_tensor({k, n}, 2), bias = random_tensor({n}, 3);
  std::vector<float> rows = random_tensor({200, k}, 4).values<float>();
  auto slice = [&](int64_t begin, int64_t count) {
    auto first = rows.begin() + begin * k;
    return Tensor::of<float>({count, k}, {first, first + count * k});
  };
  for (Isa isa : available_isas()) {
    for (const char* precision : {"bf16", "int8"}) {
      Tensors constants = {slice(0, 1), w, bias};
      auto op = make_linear(isa, constants, precision, "gelu_erf");
      std::vector<float> alone;
      for (int64_t r = 0; r < 200; ++r) {
        std::vector<float> y =
            run_one(*op, {DType::kF32}, {slice(r, 1), w, bias})[0].values<float>();
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (int64_t count = 1; count < 200; count += count < 20 ? 1 : 57) {
        for (int threads : {1, 3}) {
          int64_t begin = (count * 37) % (201 - count);
          Tensor y = run_one(*op, {DType::kF32}, {slice(begin, count), w, bias}, threads)[0];
          HR_CHECK(std::memcmp(y.bytes.data(), alone.data() + begin * n, y.bytes.size()) == 0);
        }
      }
    }
  }
}

HR_TEST(linear_refuses_precisions_and_dtypes_it_does_not_know) {
  Tensors in = {random_tensor({2, 20}, 1), random_tensor({20, 10}, 2), Tensor{}};
  HR_CHECK_THROWS(make_linear(Isa::kReference, in, "fp8"), Error);
  in[0] = rounded(in[0]);
  HR_CHECK_THROWS(make_linear(Isa::kReference, in, "fp32"), Error);
  Tensors deep = {random_tensor({1, kMaxInt8K + 1}, 1), random_tensor({kMaxInt8K + 1, 1}, 2),
                  Tensor{}};
  HR_CHECK_THROWS(make_linear(Isa::kReference, deep, "int8"), Error);
}

}  // namespace
}  // namespace headrace
