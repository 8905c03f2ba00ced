// Ops on elements and on rows.
#include <limits>

#include "op_case.h"

namespace headrace::cuda::test {
namespace {

const std::vector<Shape> kRows = {{3, 40}, {1, 40}, {6, 40}};

HR_TEST(cuda_arithmetic_broadcasts_like_the_cpu) {
  for (const char* op : {"Add", "Sub", "Mul", "Div", "Min", "Max"}) {
    check_on_host(
        {node_of(op, 14), {per_request(randoms(kRows)), per_request(randoms(kRows, 90))}});
  }
  // A column against rows, a shared row, a shared scalar.
  check_on_host({node_of("Mul", 14),
                 {per_request(randoms({{2, 5, 8}, {2, 3, 8}})),
                  per_request(randoms({{2, 5, 1}, {2, 3, 1}}, 90))}});
  check_on_host({node_of("Add", 14), {per_request(randoms(kRows)), constant(random({40}, 3))}});
  check_on_host({node_of("Div", 14), {constant(random({}, 3)), per_request(randoms(kRows))}});
  check_on_host({node_of("Pow", 15),
                 {per_request({random({9}, 1)}), constant(Tensor::of<float>({}, {2.0f}))}});
  Tensors a = {ints({4}, {7, -7, INT64_MIN, 5})}, b = {ints({4}, {2, 2, -1, 0})};
  for (const char* op : {"Add", "Mul", "Div"}) {
    check_on_host({node_of(op, 14, {}, {DType::kI64}), {per_request(a), per_request(b)}});
  }
}

HR_TEST(cuda_comparisons_and_choices_are_the_cpus) {
  for (const char* op : {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}) {
    check_on_host({node_of(op, 16, {}, {DType::kBool}),
                   {per_request({ints({5}, {1, 2, 3, 4, 5})}), constant(ints({}, {3}))}});
  }
  Tensor flags{DType::kBool, {2, 3}, {}};
  for (int i = 0; i < 6; ++i) flags.bytes.push_back(std::byte(i % 2));
  check_on_host({node_of("Not", 1, {}, {DType::kBool}), {per_request({flags})}});
  check_on_host({node_of("Where", 16),
                 {per_request({flags}), per_request({random({3}, 1)}),
                  constant(Tensor::of<float>({}, {-2.0f}))}});
  check_on_host(
      {node_of("Clip", 13),
       {per_request(randoms(kRows)), constant(Tensor::of<float>({}, {-0.5f})), absent()}});
}

HR_TEST(cuda_casts_are_the_cpus) {
  Tensor numbers = Tensor::of<float>({6}, {-2.7f, -0.0f, 0.4f, 1.5f, 100.25f, 3e9f});
  Tensor integers = ints({3}, {0, -3, (int64_t{1} << 53) + 1});
  for (auto [onnx, dtype] : {std::pair{7, DType::kI64}, {9, DType::kBool}, {11, DType::kF64}}) {
    check_on_host(
        {node_of("Cast", 13, {{"to", int64_t{onnx}}}, {dtype}), {per_request({numbers})}});
  }
  for (auto [onnx, dtype] : {std::pair{1, DType::kF32}, {9, DType::kBool}, {6, DType::kI32}}) {
    check_on_host(
        {node_of("Cast", 13, {{"to", int64_t{onnx}}}, {dtype}), {per_request({integers})}});
  }
}

HR_TEST(cuda_casts_of_what_does_not_fit_are_the_cpus) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  Tensor numbers = Tensor::of<float>(
      {9}, {0x1p63f, -0x1p63f, 1e30f, -1e30f, kInfinity, -kInfinity, kNan, 3e9f, -3e9f});
  for (auto [onnx, dtype] : {std::pair{6, DType::kI32}, {7, DType::kI64}}) {
    check_on_host(
        {node_of("Cast", 13, {{"to", int64_t{onnx}}}, {dtype}), {per_request({numbers})}, 0});
  }
}

HR_TEST(cuda_activations_are_the_cpus) {
  for (const char* op :
       {"Relu", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp",
        "Softplus", "Reciprocal", "Floor", "Ceil", "Round", "Abs", "Neg", "Gelu"}) {
    check_on_host({node_of(op, 22), {per_request(randoms(kRows))}, 1e-5});
  }
  check_on_host(
      {node_of("Gelu", 20, {{"approximate", std::string("tanh")}}), {per_request(randoms(kRows))}});
  check_on_host({node_of("Sqrt", 13), {per_request({Tensor::of<float>({3}, {4, 2, 0})})}});
}

HR_TEST(cuda_softmax_works_along_any_axis) {
  for (const char* op : {"Softmax", "LogSoftmax"}) {
    check_on_host({node_of(op, 13), {per_request(randoms({{3, 70}, {2, 5}, {1, 5}}))}});
    check_on_host(
        {node_of(op, 13, {{"axis", int64_t{1}}}), {per_request(randoms({{2, 6, 3}, {1, 9, 3}}))}});
    check_on_host({node_of(op, 11, {{"axis", int64_t{1}}}), {per_request(randoms({{2, 6, 3}}))}});
  }
}

HR_TEST(cuda_norms_are_the_cpus) {
  for (int64_t width : {5, 40, 100}) {
    std::vector<Shape> shapes = {{3, width}, {1, width}, {9, width}};
    check_on_host({node_of("LayerNormalization", 17, {{"epsilon", 1e-5}},
                           {DType::kF32, DType::kF32, DType::kF32}),
                   {per_request(randoms(shapes)), constant(random({width}, 1)),
                    constant(random({width}, 2))}});
    check_on_host({node_of("RMSNormalization", 23),
                   {per_request(randoms(shapes)), constant(random({width}, 1))}});
  }
}

HR_TEST(cuda_embedding_norm_sums_its_terms) {
  Tensors ids = {ints({2, 3}, {0, 4, -1, 2, 2, 1}), ints({1, 2}, {3, 0})};
  Tensors positions = randoms({{1, 3, 24}, {1, 2, 24}}, 50);
  check_on_host(
      {node_of("headrace.EmbeddingNorm", 1, {{"epsilon", 1e-12}}),
       {constant(random({24}, 1)), constant(random({24}, 2)), constant(random({5, 24}, 3)),
        per_request(ids), constant(random({24}, 4)), absent(), per_request(positions)}});
}

}  // namespace
}  // namespace headrace::cuda::test
