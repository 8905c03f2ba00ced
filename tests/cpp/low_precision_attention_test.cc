// Attention in bf16, on every ISA: those with instructions for it and those without.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "linear_cases.h"

namespace headrace {
namespace {

using test::random_tensor;
using test::Tensor;
using test::Tensors;

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

struct Sizes {
  int64_t heads, queries, keys, dim;
};
// Whole and broken words, vectors, tiles and blocks.
const Sizes kSizes[] = {{1, 1, 1, 1},    {2, 3, 5, 4},   {1, 33, 129, 20}, {2, 7, 300, 33},
                        {1, 130, 64, 5}, {1, 17, 2, 80}, {3, 16, 128, 32}};

std::unique_ptr<Op> make_attention(const Sizes& s, const Tensors& in, DType output, Isa isa) {
  NodeSpec spec;
  spec.op = "headrace.Attention";
  spec.isa = isa;
  spec.attributes = {{"num_heads", s.heads},
                     {"kv_heads", s.heads},
                     {"scale", 1.0 / std::sqrt(static_cast<double>(s.dim))},
                     {"layout", std::string("bhsd")},
                     {"precision", std::string("bf16")}};
  for (const Tensor& input : in) spec.input_dtypes.push_back(input.dtype);
  spec.constants.resize(in.size());
  spec.output_dtypes = {output};
  return OpRegistry::global().make(spec);
}

Tensors operands(const Sizes& s, const Shape& mask) {
  return {random_tensor({1, s.heads, s.queries, s.dim}, 1),
          random_tensor({1, s.heads, s.keys, s.dim}, 2),
          random_tensor({1, s.heads, s.keys, s.dim}, 3),
          mask.rank() > 0 ? random_tensor(mask, 4) : Tensor{}};
}

// Of rounded operands and exact probabilities.
std::vector<double> expected_of(const Sizes& s, const Tensors& in) {
  std::vector<float> q = as_floats(rounded(in[0])), k = as_floats(rounded(in[1])),
                     v = as_floats(rounded(in[2])), mask = in[3].values<float>();
  std::vector<double> out;
  std::vector<double> p(static_cast<size_t>(s.keys));
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t i = 0; i < s.queries; ++i) {
      for (int64_t j = 0; j < s.keys; ++j) {
        double score = 0;
        for (int64_t d = 0; d < s.dim; ++d) {
          score += static_cast<double>(q[static_cast<size_t>((h * s.queries + i) * s.dim + d)]) *
                   k[static_cast<size_t>((h * s.keys + j) * s.dim + d)];
        }
        score /= std::sqrt(static_cast<double>(s.dim));
        if (!mask.empty()) score += mask[static_cast<size_t>(j)];
        p[static_cast<size_t>(j)] = score;
      }
      double top = *std::ranges::max_element(p), sum = 0;
      for (double& value : p) sum += value = std::exp(value - top);
      for (int64_t d = 0; d < s.dim; ++d) {
        double y = 0;
        for (int64_t j = 0; j < s.keys; ++j) {
          y += p[static_cast<size_t>(j)] / sum *
               v[static_cast<size_t>((h * s.keys + j) * s.dim + d)];
        }
        out.push_back(y);
      }
    }
  }
  return out;
}

HR_TEST(bf16_attention_rounds_operands_and_probabilities_and_nothing_else) {
  for (Isa isa : available_isas()) {
    for (const Sizes& s : kSizes) {
      for (const Shape& mask : {Shape{}, Shape{s.keys}}) {
        Tensors in = operands(s, mask);
        std::vector<double> expected = expected_of(s, in);
        // Every probability is off by half a step of bfloat16 at most, and so is their sum.
        float largest = 0.0f;
        for (float v : in[2].values<float>()) largest = std::max(largest, std::abs(v));
        const double tolerance = largest * 0x1p-8 + 1e-5;
        std::vector<float> got =
            test::run_one(*make_attention(s, in, DType::kF32, isa), {DType::kF32}, in)[0]
                .values<float>();
        HR_CHECK_EQ(got.size(), expected.size());
        for (size_t i = 0; i < got.size(); ++i) HR_CHECK_NEAR(got[i], expected[i], tolerance);
        // What an op before it has rounded gives the same bits, and so does rounding the result.
        Tensors narrow{rounded(in[0]), rounded(in[1]), rounded(in[2]), in[3]};
        Tensor small =
            test::run_one(*make_attention(s, narrow, DType::kBF16, isa), {DType::kBF16}, narrow)[0];
        HR_CHECK(small.bytes == rounded(Tensor::of(small.shape, got)).bytes);
      }
    }
  }
}

HR_TEST(bf16_attention_weighs_with_probabilities_that_add_up_to_one) {
  Sizes s{1, 5, 301, 16};
  Tensors in = operands(s, {});
  in[2] = Tensor::of(in[2].shape, std::vector<float>(static_cast<size_t>(s.keys * s.dim), 0.75f));
  for (Isa isa : available_isas()) {
    Tensor out = test::run_one(*make_attention(s, in, DType::kF32, isa), {DType::kF32}, in)[0];
    for (float value : out.values<float>()) HR_CHECK_NEAR(value, 0.75, 1e-6);
  }
}

HR_TEST(bf16_attention_bits_do_not_depend_on_batch_or_threads) {
  for (Isa isa : available_isas()) {
    std::vector<Tensors> requests;
    for (int64_t length : {5, 1, 200, 0, 33, 128}) {
      Sizes s{2, length, length, 24};
      Tensors in = operands(s, {length});
      if (length == 0) in[3] = Tensor::of<float>({0}, {});
      requests.push_back({rounded(in[0]), rounded(in[1]), rounded(in[2]), in[3]});
    }
    auto op = make_attention({2, 0, 0, 24}, requests[0], DType::kBF16, isa);
    for (int threads : {1, 3}) {
      std::vector<Tensors> together = test::run_op(*op, {DType::kBF16}, requests, threads);
      for (size_t r = 0; r < requests.size(); ++r) {
        HR_CHECK(together[r][0].bytes == test::run_one(*op, {DType::kBF16}, requests[r])[0].bytes);
      }
    }
  }
}

HR_TEST(attention_in_other_dtypes_than_its_precision_is_refused) {
  Tensors in = operands({1, 2, 2, 4}, {});
  Tensors narrow{rounded(in[0]), rounded(in[1]), rounded(in[2]), in[3]};
  Isa isa = available_isas().back();
  NodeSpec spec;
  spec.op = "headrace.Attention";
  spec.isa = isa;
  spec.attributes = {{"num_heads", int64_t{1}},
                     {"kv_heads", int64_t{1}},
                     {"scale", 0.5},
                     {"layout", std::string("bhsd")}};
  for (const Tensor& input : narrow) spec.input_dtypes.push_back(input.dtype);
  spec.constants.resize(4);
  spec.output_dtypes = {DType::kF32};
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec.attributes["precision"] = std::string("int8");
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
}

}  // namespace
}  // namespace headrace
