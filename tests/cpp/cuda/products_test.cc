// Matrix products, attention and convolutions.
#include "op_case.h"

namespace headrace::cuda::test {
namespace {

OpCase linear(const std::vector<Shape>& shapes, int64_t k, int64_t cols, const std::string& act,
              bool residual, const std::string& precision = "fp32", DType x = DType::kF32,
              DType y = DType::kF32) {
  Attributes attributes{{"activation", act}, {"precision", precision}};
  Tensors rows = randoms(shapes);
  if (x == DType::kBF16) {
    for (Tensor& tensor : rows) {
      std::vector<BFloat16> narrow;
      for (float value : tensor.values<float>()) narrow.push_back(BFloat16(value));
      tensor = Tensor::of(tensor.shape, narrow);
    }
  }
  OpCase c{node_of("headrace.Linear", 1, attributes, {y}),
           {per_request(rows), constant(random({k, cols}, 3, 0.2f)), constant(random({cols}, 4))},
           precision == "fp32" ? 1e-5 : 2e-2};
  if (!residual) return c;
  std::vector<Shape> outputs = shapes;
  for (Shape& shape : outputs) shape[shape.rank() - 1] = cols;
  c.inputs.push_back(per_request(randoms(outputs, 60)));
  return c;
}

HR_TEST(cuda_linear_is_the_cpus_whatever_the_tails) {
  check_on_host(linear({{3, 20}, {1, 20}}, 20, 33, "none", false));
  check_on_host(linear({{2, 35, 64}, {1, 3, 64}}, 64, 70, "gelu_erf", true));
  check_on_host(linear({{1, 1}}, 1, 1, "relu", false));
  for (const char* act : {"gelu_tanh", "sigmoid", "tanh", "silu"}) {
    check_on_host(linear({{5, 17}}, 17, 9, act, false));
  }
}

HR_TEST(cuda_linear_on_tensor_cores_rounds_its_operands) {
  check_on_host(linear({{3, 20}, {1, 20}}, 20, 33, "none", false, "bf16"));
  check_on_host(linear({{70, 40}, {2, 40}}, 40, 66, "gelu_erf", true, "bf16"));
  check_on_host(linear({{4, 40}}, 40, 8, "none", false, "bf16", DType::kBF16, DType::kF32));
  check_on_host(linear({{4, 40}}, 40, 8, "none", false, "bf16", DType::kF32, DType::kBF16));
}

HR_TEST(cuda_matmul_broadcasts_its_batches) {
  check_on_host({node_of("MatMul", 13),
                 {per_request(randoms({{2, 3, 5, 7}, {1, 3, 2, 7}})),
                  per_request(randoms({{3, 7, 4}, {3, 7, 4}}, 40))}});
  check_on_host({node_of("MatMul", 13),
                 {per_request(randoms({{70, 20}})), per_request(randoms({{20, 65}}, 40))}});
  check_on_host({node_of("MatMul", 13),
                 {per_request(randoms({{6}})), per_request(randoms({{4, 6, 3}}, 40))}});
}

Attributes attention(const std::string& layout, int64_t heads, int64_t kv_heads, bool guard) {
  return {{"layout", layout},
          {"num_heads", heads},
          {"kv_heads", kv_heads},
          {"scale", 0.35},
          {"guard_nan", int64_t{guard}}};
}

HR_TEST(cuda_attention_is_the_cpus_at_every_length) {
  // Less than a block of keys, more than one, and several blocks of queries.
  std::vector<Shape> shapes = {{1, 5, 3 * 2 * 8}, {2, 33, 3 * 2 * 8}, {1, 70, 3 * 2 * 8}};
  check_on_host({node_of("headrace.Attention", 1, attention("qkv", 2, 2, false)),
                 {per_request(randoms(shapes))}});
  // Heads that share keys, other lengths of keys than of queries, wide heads.
  check_on_host(
      {node_of("headrace.Attention", 1, attention("bsd", 4, 2, false)),
       {per_request(randoms({{2, 6, 4 * 40}})), per_request(randoms({{2, 35, 2 * 40}}, 20)),
        per_request(randoms({{2, 35, 2 * 40}}, 30))}});
  for (int64_t dim : {100, 129, 256}) {
    check_on_host(
        {node_of("headrace.Attention", 1, attention("bhsd", 2, 1, false)),
         {per_request(randoms({{1, 2, 3, dim}})), per_request(randoms({{1, 1, 35, dim}}, 20)),
          per_request(randoms({{1, 1, 35, dim}}, 30))}});
  }
}

Tensor flags(Shape shape, uint32_t pattern) {
  Tensor tensor{DType::kBool, shape, {}};
  for (int64_t i = 0; i < shape.elements(); ++i)
    tensor.bytes.push_back(std::byte(pattern >> i % 32 & 1));
  return tensor;
}

HR_TEST(cuda_attention_masks_keys) {
  std::vector<Shape> shapes = {{2, 9, 3 * 2 * 8}, {1, 40, 3 * 2 * 8}};
  Tensors added = {random({2, 1, 1, 9}, 5), random({1, 1, 40, 40}, 6)};
  check_on_host({node_of("headrace.Attention", 1, attention("qkv", 2, 2, false)),
                 {per_request(randoms(shapes)), absent(), absent(), per_request(added)}});
  // Some queries have no key left: NaN, or 0 where that is guarded.
  Tensors keep = {flags({2, 1, 1, 9}, 0x1ff), flags({1, 1, 40, 40}, 0)};
  for (bool guard : {false, true}) {
    check_on_host({node_of("headrace.Attention", 1, attention("qkv", 2, 2, guard)),
                   {per_request(randoms(shapes)), absent(), absent(), per_request(keep)}});
  }
}

struct ConvCase {
  std::vector<Shape> x;  // channels last
  Shape weight;
  Attributes attributes;
  std::string precision = "fp32";
  std::vector<Shape> residual{};
};

void check_conv(const ConvCase& c) {
  Attributes attributes = c.attributes;
  attributes["layout"] = std::string("nhwc");
  attributes["precision"] = c.precision;
  OpCase op{node_of("headrace.FusedConv", 1, attributes),
            {per_request(randoms(c.x)), constant(random(c.weight, 3, 0.2f)),
             constant(random({c.weight[0]}, 4))},
            c.precision == "fp32" ? 1e-5 : 2e-2};
  if (!c.residual.empty()) op.inputs.push_back(per_request(randoms(c.residual, 70)));
  check_on_host(op);
}

using Ints = std::vector<int64_t>;

HR_TEST(cuda_convolution_is_the_cpus) {
  check_conv(
      {{{2, 7, 6, 3}, {1, 9, 5, 3}},
       {8, 3, 3, 3},
       {{"pads", Ints{1, 1, 1, 1}}, {"strides", Ints{2, 1}}, {"activation", std::string("relu")}}});
  check_conv({{{1, 9, 9, 4}, {2, 9, 9, 4}},
              {6, 2, 3, 2},
              {{"group", int64_t{2}}, {"dilations", Ints{2, 1}}}});
  check_conv({{{1, 4, 4, 5}, {3, 4, 4, 5}},
              {70, 5, 1, 1},
              {{"activation", std::string("relu")}},
              "fp32",
              {{1, 4, 4, 70}, {3, 4, 4, 70}}});
  check_conv({{{2, 12, 3}}, {4, 3, 5}, {{"pads", Ints{2, 2}}}});  // one spatial axis
  check_conv({{{2, 7, 6, 3}}, {8, 3, 3, 3}, {{"pads", Ints{1, 1, 1, 1}}}, "bf16"});
}

HR_TEST(cuda_depthwise_convolution_is_the_cpus) {
  check_conv({{{2, 7, 6, 8}, {1, 5, 5, 8}},
              {8, 1, 3, 3},
              {{"group", int64_t{8}},
               {"pads", Ints{1, 1, 1, 1}},
               {"strides", Ints{1, 2}},
               {"activation", std::string("clip")},
               {"clip_min", 0.0},
               {"clip_max", 6.0}}});
}

HR_TEST(cuda_pools_are_the_cpus) {
  Attributes window{{"layout", std::string("nhwc")},
                    {"kernel_shape", Ints{3, 2}},
                    {"strides", Ints{2, 1}},
                    {"pads", Ints{1, 0, 1, 1}}};
  std::vector<Shape> shapes = {{2, 7, 6, 3}, {1, 5, 8, 3}};
  check_on_host({node_of("headrace.MaxPool", 1, window), {per_request(randoms(shapes))}});
  check_on_host({node_of("headrace.AveragePool", 1, window), {per_request(randoms(shapes))}});
  window["count_include_pad"] = int64_t{1};
  check_on_host({node_of("headrace.AveragePool", 1, window), {per_request(randoms(shapes))}});
  for (const char* op : {"GlobalAveragePool", "GlobalMaxPool"}) {
    check_on_host({node_of(op, 1), {per_request(randoms({{2, 5, 7, 6}, {1, 3, 40, 1}}))}});
  }
}

}  // namespace
}  // namespace headrace::cuda::test
