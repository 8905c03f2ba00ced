#include <numeric>

#include "check.h"
#include "core/strided.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec node(std::string op, std::vector<DType> inputs, DType output) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 20;
  spec.constants.resize(inputs.size());
  spec.input_dtypes = std::move(inputs);
  spec.output_dtypes = {output};
  return spec;
}

Tensor counted(const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  std::iota(values.begin(), values.end(), 0.0f);
  return Tensor::of<float>(shape, values);
}

Tensor ints(const std::vector<int64_t>& values) {
  return Tensor::of<int64_t>({static_cast<int64_t>(values.size())}, values);
}

Shape inferred(const Op& op, const Tensors& inputs) {
  std::vector<ConstTensorView> views;
  for (const Tensor& input : inputs) views.push_back(input.view());
  Shape shape;
  op.infer(views, {&shape, 1});
  return shape;
}

HR_TEST(reshape_fills_in_zeros_and_the_unknown_dim_and_refuses_the_rest) {
  auto op = OpRegistry::global().make(node("Reshape", {DType::kF32, DType::kI64}, DType::kF32));
  HR_CHECK(inferred(*op, {counted({2, 3, 4}), ints({0, -1})}) == (Shape{2, 12}));
  HR_CHECK(inferred(*op, {counted({0, 3}), ints({3, -1})}) == (Shape{3, 0}));
  HR_CHECK_THROWS(inferred(*op, {counted({2, 3}), ints({4, -1})}), Error);
  HR_CHECK_THROWS(inferred(*op, {counted({2, 3}), ints({-1, -1})}), Error);
  HR_CHECK_THROWS(inferred(*op, {counted({2, 3}), ints({-2, 3})}), Error);
  // 2^64 elements must not pass for none.
  int64_t huge = int64_t{1} << 32;
  HR_CHECK_THROWS(inferred(*op, {counted({0}), ints({huge, huge})}), Error);
}

HR_TEST(expand_and_constant_of_shape_refuse_sizes_from_a_request_that_no_memory_holds) {
  auto expand = OpRegistry::global().make(node("Expand", {DType::kF32, DType::kI64}, DType::kF32));
  HR_CHECK(inferred(*expand, {counted({3, 1}), ints({2, 1, 4})}) == (Shape{2, 3, 4}));
  HR_CHECK_THROWS(inferred(*expand, {counted({1}), ints({-1})}), Error);
  auto fill = OpRegistry::global().make(node("ConstantOfShape", {DType::kI64}, DType::kF32));
  HR_CHECK_THROWS(inferred(*fill, {ints({int64_t{1} << 40, int64_t{1} << 40})}), Error);
}

HR_TEST(slice_follows_python_for_any_start_end_and_step) {
  auto op = OpRegistry::global().make(node(
      "Slice", {DType::kF32, DType::kI64, DType::kI64, DType::kI64, DType::kI64}, DType::kF32));
  constexpr int64_t kLength = 5;
  const int64_t bounds[] = {INT64_MIN, -7, -5, -2, -1, 0, 1, 3, 5, 9, INT64_MAX};
  for (int64_t start : bounds) {
    for (int64_t end : bounds) {
      for (int64_t step :
           {INT64_MIN, int64_t{-3}, int64_t{-1}, int64_t{1}, int64_t{2}, INT64_MAX}) {
        // Python's slice.indices, walked one by one.
        auto clip = [&](int64_t at) {
          if (at < 0) at = std::max(at, -kLength - 1) + kLength;
          return std::clamp<int64_t>(at, step > 0 ? 0 : -1, step > 0 ? kLength : kLength - 1);
        };
        std::vector<float> wanted;
        for (int64_t i = clip(start), to = clip(end); step > 0 ? i < to : i > to;) {
          wanted.push_back(static_cast<float>(i));
          if (step > kLength || step < -kLength) break;
          i += step;
        }
        Tensors out = test::run_one(
            *op, {DType::kF32},
            {counted({kLength}), ints({start}), ints({end}), ints({0}), ints({step})});
        HR_CHECK(out[0].values<float>() == wanted);
      }
    }
  }
}

HR_TEST(strided_copies_are_the_same_in_any_batch_and_on_any_threads) {
  NodeSpec spec = node("Transpose", {DType::kF32}, DType::kF32);
  spec.attributes["perm"] = std::vector<int64_t>{2, 0, 1};
  auto op = OpRegistry::global().make(spec);
  std::vector<Tensors> requests;
  for (int64_t n : {3, 0, 700, 1}) requests.push_back({counted({2, n, 31})});
  auto together = test::run_op(*op, {DType::kF32}, requests, 3);
  for (size_t r = 0; r < requests.size(); ++r) {
    const Shape& from = requests[r][0].shape;
    std::vector<float> in = requests[r][0].values<float>();
    std::vector<float> out = together[r][0].values<float>();
    HR_CHECK(together[r][0].shape == (Shape{31, 2, from[1]}));
    size_t next = 0;
    for (int64_t c = 0; c < 31; ++c) {
      for (int64_t a = 0; a < 2; ++a) {
        for (int64_t b = 0; b < from[1]; ++b) {
          HR_CHECK_EQ(out[next++], in[static_cast<size_t>((a * from[1] + b) * 31 + c)]);
        }
      }
    }
    HR_CHECK(test::run_one(*op, {DType::kF32}, requests[r], 4)[0].bytes == together[r][0].bytes);
  }
}

// Every element of y = transpose(x, perm), by its index.
template <class T>
int wrong_after_transpose(const Tensor& x, const std::vector<int64_t>& perm, const Tensor& y) {
  Strides from = strides_of(x.shape);
  std::vector<T> in = x.values<T>(), out = y.values<T>();
  int wrong = 0;
  for (int64_t i = 0; i < y.shape.elements(); ++i) {
    int64_t rest = i, at = 0;
    for (int axis = y.shape.rank() - 1; axis >= 0; --axis) {
      at += rest % y.shape[axis] * from[static_cast<int>(perm[static_cast<size_t>(axis)])];
      rest /= y.shape[axis];
    }
    wrong += out[static_cast<size_t>(i)] != in[static_cast<size_t>(at)];
  }
  return wrong;
}

template <class T>
void check_transpose(const Shape& shape, const std::vector<int64_t>& perm, Isa isa) {
  std::vector<T> values(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i);
  Tensor x = Tensor::of<T>(shape, values);
  NodeSpec spec = node("Transpose", {kDTypeOf<T>}, kDTypeOf<T>);
  spec.isa = isa;
  spec.attributes["perm"] = perm;
  auto op = OpRegistry::global().make(spec);
  for (int threads : {1, 3}) {
    Tensors y = test::run_one(*op, {kDTypeOf<T>}, {x}, threads);
    HR_CHECK_EQ(wrong_after_transpose<T>(x, perm, y[0]), 0);
  }
}

HR_TEST(transpose_moves_every_element_of_any_size_on_every_isa) {
  for (Isa isa : available_isas()) {
    for (const Shape& shape : {Shape{32, 48}, Shape{17, 33}, Shape{1, 40}, Shape{64, 5}}) {
      check_transpose<float>(shape, {1, 0}, isa);
      check_transpose<int64_t>(shape, {1, 0}, isa);
      check_transpose<uint8_t>(shape, {1, 0}, isa);
    }
    check_transpose<float>({2, 35, 3, 16}, {0, 2, 1, 3}, isa);  // runs of one cache line
    check_transpose<float>({2, 35, 3, 20}, {0, 2, 1, 3}, isa);
    check_transpose<float>({3, 32, 5, 16}, {0, 2, 3, 1}, isa);
    check_transpose<float>({3, 5, 16, 32}, {0, 3, 1, 2}, isa);
    check_transpose<float>({4, 3, 2, 32}, {2, 1, 0, 3}, isa);
    // So large that it is stored past the caches.
    check_transpose<float>({2080, 1056}, {1, 0}, isa);
    check_transpose<float>({40, 70, 12, 64}, {0, 2, 1, 3}, isa);
  }
}

HR_TEST(gather_refuses_indices_outside_of_the_axis_and_never_reads_them) {
  auto gather = OpRegistry::global().make(node("Gather", {DType::kF32, DType::kI64}, DType::kF32));
  Tensors out = test::run_one(*gather, {DType::kF32}, {counted({4, 2}), ints({-1, 0})});
  HR_CHECK(out[0].values<float>() == (std::vector<float>{6, 7, 0, 1}));
  HR_CHECK_THROWS(inferred(*gather, {counted({4, 2}), ints({4})}), Error);
  HR_CHECK_THROWS(inferred(*gather, {counted({4, 2}), ints({-5})}), Error);
  HR_CHECK_THROWS(inferred(*gather, {counted({4, 2}), ints({INT64_MIN})}), Error);
  auto scatter = OpRegistry::global().make(
      node("ScatterND", {DType::kF32, DType::kI64, DType::kF32}, DType::kF32));
  Tensor index = Tensor::of<int64_t>({1, 1}, {7});
  HR_CHECK_THROWS(inferred(*scatter, {counted({4}), index, counted({1})}), Error);
}

HR_TEST(ops_whose_output_depends_on_data_count_per_request) {
  auto op = OpRegistry::global().make(node("NonZero", {DType::kF32}, DType::kI64));
  std::vector<Tensors> requests = {{Tensor::of<float>({2, 2}, {0, 1, 2, 0})},
                                   {Tensor::of<float>({1, 3}, {0, 0, 0})},
                                   {Tensor::of<float>({1, 1}, {5})}};
  auto out = test::run_op(*op, {DType::kI64}, requests, 2);
  HR_CHECK(out[0][0].values<int64_t>() == (std::vector<int64_t>{0, 1, 1, 0}));
  HR_CHECK(out[1][0].shape == (Shape{2, 0}));
  HR_CHECK(out[2][0].values<int64_t>() == (std::vector<int64_t>{0, 0}));
}

}  // namespace
}  // namespace headrace
