// More rows, samples and products than a grid has room for.
#include "op_case.h"

namespace headrace::cuda::test {
namespace {

using Ints = std::vector<int64_t>;

// Grids of three blocks in y and z while it lives, so that five Requests are too many for one.
struct SmallGrids {
  uint64_t before = std::exchange(on_host::max_grid_yz, 3);
  ~SmallGrids() { on_host::max_grid_yz = before; }
};

const std::vector<Shape> kRows = {{3, 4}, {1, 4}, {6, 4}, {2, 4}, {5, 4}};

HR_TEST(cuda_rows_that_no_grid_holds_take_several) {
  SmallGrids small;
  Tensors x = randoms(kRows);
  check_on_host({node_of("Add", 14), {per_request(x), constant(random({4}, 3))}});
  Tensor flags{DType::kBool, {4}, {std::byte(1), std::byte(0), std::byte(1), std::byte(0)}};
  check_on_host({node_of("Where", 16), {constant(flags), per_request(x), constant(random({}, 2))}});
  check_on_host({node_of("Transpose", 13, {{"perm", Ints{1, 0}}}), {per_request(x)}, 0});
  check_on_host({node_of("Concat", 13, {{"axis", int64_t{0}}}),
                 {per_request(x), constant(random({2, 4}, 1))},
                 0});
  Tensors indices = {ints({2}, {0, -1}), ints({1}, {2}), ints({3}, {1, 1, 0}), ints({1}, {3}),
                     ints({2}, {2, 3})};
  check_on_host({node_of("Gather", 13), {constant(random({4, 6}, 1)), per_request(indices)}, 0});
  check_on_host({node_of("ReduceSum", 18, {{"keepdims", int64_t{0}}}),
                 {per_request(x), constant(ints({1}, {1}))}});
  check_on_host({node_of("headrace.EmbeddingNorm", 1, {{"epsilon", 1e-12}}),
                 {constant(random({6}, 1)), constant(random({6}, 2)), constant(random({4, 6}, 3)),
                  per_request(indices)}});
}

HR_TEST(cuda_products_that_no_grid_holds_take_several) {
  SmallGrids small;
  check_on_host({node_of("MatMul", 13),
                 {per_request(randoms({{2, 2, 5, 7}, {1, 2, 2, 7}})),
                  per_request(randoms({{2, 7, 4}, {2, 7, 4}}, 40))}});
  check_on_host({node_of("headrace.Attention", 1,
                         {{"layout", std::string("qkv")},
                          {"num_heads", int64_t{2}},
                          {"kv_heads", int64_t{2}},
                          {"scale", 0.35}}),
                 {per_request(randoms({{4, 5, 48}, {2, 3, 48}, {1, 20, 48}}))}});
}

HR_TEST(cuda_images_that_no_grid_holds_take_several) {
  SmallGrids small;
  std::vector<Shape> shapes = {
      {1, 5, 4, 4}, {2, 4, 4, 4}, {1, 6, 3, 4}, {1, 4, 4, 4}, {1, 3, 3, 4}};
  Attributes attributes{{"layout", std::string("nhwc")}, {"precision", std::string("fp32")}};
  for (int64_t group : {1, 2, 4}) {  // the last of them depthwise
    attributes["group"] = group;
    check_on_host({node_of("headrace.FusedConv", 1, attributes),
                   {per_request(randoms(shapes)), constant(random({4, 4 / group, 2, 2}, 3)),
                    constant(random({4}, 4))}});
  }
  Attributes window{{"layout", std::string("nhwc")}, {"kernel_shape", Ints{2, 2}}};
  check_on_host({node_of("headrace.MaxPool", 1, window), {per_request(randoms(shapes))}});
  check_on_host({node_of("GlobalAveragePool", 1), {per_request(randoms(shapes))}});
}

}  // namespace
}  // namespace headrace::cuda::test
