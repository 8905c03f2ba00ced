#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

constexpr int64_t kBatch = 2;
constexpr int64_t kHeads = 4;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kDim = 12;
constexpr int64_t kValueDim = 20;

// What one case asks for; tensors are [batch, heads, rows, width] throughout.
struct Case {
  int64_t queries = 5;
  int64_t past = 0;
  int64_t fresh = 5;
  bool causal = false;
  double softcap = 0.0;
  int64_t mask_keys = 0;             // 0 for no mask
  std::vector<int64_t> nonpad = {};  // empty for none
  bool present = false;              // whether the joined keys and values are wanted
  int64_t keys() const { return past + fresh; }
};

Tensor random_tensor(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of<float>(shape, values);
}

NodeSpec onnx_attention(const Tensors& inputs, const Case& c, Isa isa) {
  NodeSpec spec;
  spec.op = "Attention";
  spec.name = "node";
  spec.opset = 24;
  for (const Tensor& input : inputs) spec.input_dtypes.push_back(input.dtype);
  spec.constants.resize(inputs.size());
  spec.output_dtypes = {DType::kF32};
  if (c.present) spec.output_dtypes = {DType::kF32, DType::kF32, DType::kF32};
  spec.attributes["is_causal"] = int64_t{c.causal};
  if (c.softcap != 0.0) spec.attributes["softcap"] = c.softcap;
  spec.isa = isa;
  return spec;
}

Tensors inputs_of(const Case& c) {
  Tensors inputs(7);
  inputs[0] = random_tensor({kBatch, kHeads, c.queries, kDim}, 1);
  inputs[1] = random_tensor({kBatch, kKvHeads, c.fresh, kDim}, 2);
  inputs[2] = random_tensor({kBatch, kKvHeads, c.fresh, kValueDim}, 3);
  if (c.mask_keys > 0) inputs[3] = random_tensor({c.queries, c.mask_keys}, 4);
  if (c.past > 0) {
    inputs[4] = random_tensor({kBatch, kKvHeads, c.past, kDim}, 5);
    inputs[5] = random_tensor({kBatch, kKvHeads, c.past, kValueDim}, 6);
  }
  if (!c.nonpad.empty()) inputs[6] = Tensor::of<int64_t>({kBatch}, c.nonpad);
  return inputs;
}

// Row `row` of the past and then the fresh rows of one head.
const float* row_of(const std::vector<float>& past, const std::vector<float>& fresh, int64_t head,
                    int64_t row, const Case& c, int64_t width) {
  if (row < c.past) return past.data() + (head * c.past + row) * width;
  return fresh.data() + (head * c.fresh + row - c.past) * width;
}

void check_case(const Case& c, Isa isa) {
  Tensors inputs = inputs_of(c);
  NodeSpec spec = onnx_attention(inputs, c, isa);
  Tensors outputs = test::run_one(*OpRegistry::global().make(spec), spec.output_dtypes, inputs, 2);
  HR_CHECK(outputs[0].shape == (Shape{kBatch, kHeads, c.queries, kValueDim}));
  std::vector<float> got = outputs[0].values<float>();
  std::vector<float> q = inputs[0].values<float>();
  std::vector<float> k = inputs[1].values<float>(), v = inputs[2].values<float>();
  std::vector<float> mask = inputs[3].values<float>();
  std::vector<float> past_k = inputs[4].values<float>(), past_v = inputs[5].values<float>();
  for (int64_t i = 0; i < kBatch * kHeads * c.queries; ++i) {
    int64_t query = i % c.queries;
    int64_t batch = i / c.queries / kHeads;
    int64_t head = batch * kKvHeads + i / c.queries % kHeads / (kHeads / kKvHeads);
    int64_t valid = c.nonpad.empty() ? c.keys() : c.nonpad[static_cast<size_t>(batch)];
    int64_t offset = c.nonpad.empty() ? c.past : valid - c.queries;
    std::vector<double> weights(static_cast<size_t>(c.keys()), 0.0);
    double sum = 0;
    for (int64_t j = 0; j < c.keys(); ++j) {
      bool counts =
          j < valid && (!c.causal || j <= query + offset) && (c.mask_keys == 0 || j < c.mask_keys);
      if (!counts) continue;
      const float* key = row_of(past_k, k, head, j, c, kDim);
      double score = 0;
      for (int64_t d = 0; d < kDim; ++d) score += q[static_cast<size_t>(i * kDim + d)] * key[d];
      score /= std::sqrt(static_cast<double>(kDim));
      if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
      if (c.mask_keys > 0) score += mask[static_cast<size_t>(query * c.mask_keys + j)];
      sum += weights[static_cast<size_t>(j)] = std::exp(score);
    }
    for (int64_t d = 0; d < kValueDim; ++d) {
      double expected = 0;
      for (int64_t j = 0; j < c.keys() && sum > 0; ++j) {
        expected +=
            weights[static_cast<size_t>(j)] / sum * row_of(past_v, v, head, j, c, kValueDim)[d];
      }
      HR_CHECK_NEAR(got[static_cast<size_t>(i * kValueDim + d)], expected, 2e-6);
    }
  }
  if (!c.present) return;
  std::vector<float> joined = outputs[1].values<float>();
  for (int64_t i = 0; i < kBatch * kKvHeads * c.keys(); ++i) {
    const float* row = row_of(past_k, k, i / c.keys(), i % c.keys(), c, kDim);
    HR_CHECK(std::equal(row, row + kDim, joined.data() + i * kDim));
  }
  HR_CHECK(outputs[2].shape == (Shape{kBatch, kKvHeads, c.keys(), kValueDim}));
}

HR_TEST(onnx_attention_matches_its_formula) {
  const Case cases[] = {
      {},
      {.queries = 3, .fresh = 140, .mask_keys = 140},
      {.queries = 40, .fresh = 40, .causal = true},
      {.queries = 200, .fresh = 200, .causal = true, .mask_keys = 200},
      {.queries = 1, .past = 150, .fresh = 1, .causal = true},
      {.queries = 4, .past = 30, .fresh = 4, .causal = true, .present = true},
      {.queries = 4, .fresh = 4, .present = true},
      {.queries = 9, .fresh = 33, .softcap = 1.5},
      {.queries = 33, .past = 7, .fresh = 33, .causal = true, .softcap = 0.5, .mask_keys = 40},
      {.queries = 5, .fresh = 20, .mask_keys = 12},
      {.queries = 3, .fresh = 24, .nonpad = {20, 5}},
      {.queries = 3, .fresh = 24, .causal = true, .nonpad = {20, 1}},
      {.queries = 2, .fresh = 6, .nonpad = {0, 6}},
  };
  for (Isa isa : available_isas()) {
    for (const Case& c : cases) check_case(c, isa);
  }
}

// [B, H, S, D] -> [B, S, H * D]
Tensor flattened(const Tensor& x) {
  const Shape& s = x.shape;
  std::vector<float> from = x.values<float>();
  std::vector<float> to(from.size());
  for (int64_t i = 0; i < static_cast<int64_t>(from.size()); ++i) {
    int64_t d = i % s[3], row = i / s[3] % s[2], head = i / s[3] / s[2] % s[1];
    int64_t batch = i / s[3] / s[2] / s[1];
    to[static_cast<size_t>(((batch * s[2] + row) * s[1] + head) * s[3] + d)] =
        from[static_cast<size_t>(i)];
  }
  return Tensor::of<float>({s[0], s[2], s[1] * s[3]}, to);
}

HR_TEST(onnx_attention_of_flat_inputs_gives_the_same_bits) {
  Case c{.queries = 6, .past = 9, .fresh = 6, .causal = true, .present = true};
  for (Isa isa : available_isas()) {
    Tensors inputs = inputs_of(c);
    NodeSpec spec = onnx_attention(inputs, c, isa);
    Tensors split = test::run_one(*OpRegistry::global().make(spec), spec.output_dtypes, inputs);
    for (size_t i = 0; i < 3; ++i) inputs[i] = flattened(inputs[i]);
    spec.attributes["q_num_heads"] = kHeads;
    spec.attributes["kv_num_heads"] = kKvHeads;
    Tensors flat = test::run_one(*OpRegistry::global().make(spec), spec.output_dtypes, inputs);
    HR_CHECK(flat[0].bytes == flattened(split[0]).bytes);
    HR_CHECK(flat[1].bytes == split[1].bytes);
    HR_CHECK(flat[2].bytes == split[2].bytes);
  }
}

HR_TEST(onnx_attention_bits_do_not_depend_on_the_batch) {
  for (Isa isa : available_isas()) {
    Case lengths[] = {{.queries = 3, .past = 5, .fresh = 3, .causal = true},
                      {.queries = 70, .past = 1, .fresh = 70, .causal = true},
                      {.queries = 1, .past = 300, .fresh = 1, .causal = true}};
    std::vector<Tensors> requests;
    for (const Case& c : lengths) requests.push_back(inputs_of(c));
    auto op = OpRegistry::global().make(onnx_attention(requests[0], lengths[0], isa));
    std::vector<Tensors> together = test::run_op(*op, {DType::kF32}, requests, 3);
    for (size_t r = 0; r < requests.size(); ++r) {
      HR_CHECK(together[r][0].bytes == test::run_one(*op, {DType::kF32}, requests[r])[0].bytes);
    }
  }
}

HR_TEST(onnx_attention_refuses_what_it_cannot_run) {
  Isa isa = available_isas().back();
  Case c;
  Tensors inputs = inputs_of(c);
  NodeSpec spec = onnx_attention(inputs, c, isa);
  spec.output_dtypes.resize(4, DType::kF32);
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec = onnx_attention(inputs, c, isa);
  spec.attributes["left_window_size"] = int64_t{3};
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  spec = onnx_attention(inputs, c, isa);
  spec.input_dtypes[0] = DType::kF16;
  HR_CHECK_THROWS(OpRegistry::global().make(spec), Error);
  auto op = OpRegistry::global().make(onnx_attention(inputs, c, isa));
  inputs[2] = random_tensor({kBatch, kKvHeads, 6, kValueDim}, 3);
  HR_CHECK_THROWS(test::run_one(*op, {DType::kF32}, inputs), Error);
}

}  // namespace
}  // namespace headrace
