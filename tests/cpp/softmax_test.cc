#include <cfloat>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

std::unique_ptr<Op> make(std::string op, int64_t axis, int64_t opset, Isa isa,
                         DType dtype = DType::kF32) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = opset;
  spec.attributes["axis"] = axis;
  spec.input_dtypes = {dtype};
  spec.output_dtypes = {dtype};
  spec.constants.resize(1);
  spec.isa = isa;
  return OpRegistry::global().make(spec);
}

template <class T>
Tensor random_tensor(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, 4.0);
  std::vector<T> values(static_cast<size_t>(shape.elements()));
  for (T& value : values) value = static_cast<T>(normal(random));
  return Tensor::of<T>(shape, values);
}

// Over the middle of [outer, n, inner], in double.
template <class T>
void check_softmax(const std::vector<T>& x, const std::vector<T>& y, int64_t outer, int64_t n,
                   int64_t inner, bool log, double tolerance) {
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t j = 0; j < inner; ++j) {
      auto at = [&](int64_t i) { return static_cast<size_t>((o * n + i) * inner + j); };
      double max = -std::numeric_limits<double>::infinity();
      for (int64_t i = 0; i < n; ++i) {
        if (x[at(i)] > max) max = x[at(i)];
      }
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += std::exp(x[at(i)] - max);
      for (int64_t i = 0; i < n; ++i) {
        double logarithm = x[at(i)] - max - std::log(sum);
        HR_CHECK_NEAR(y[at(i)], log ? logarithm : std::exp(logarithm), tolerance);
      }
    }
  }
}

HR_TEST(softmax_matches_its_formula_on_every_axis) {
  Shape shape{3, 37, 21};
  for (Isa isa : available_isas()) {
    for (bool log : {false, true}) {
      const char* name = log ? "LogSoftmax" : "Softmax";
      for (int64_t axis : {-3, -2, -1, 0, 1, 2}) {
        int from = static_cast<int>(axis < 0 ? axis + 3 : axis);
        Tensor x = random_tensor<float>(shape, 1);
        Tensors y = test::run_one(*make(name, axis, 13, isa), {DType::kF32}, {x});
        check_softmax(x.values<float>(), y[0].values<float>(), shape.elements(0, from), shape[from],
                      shape.elements(from + 1, 3), log, 1e-6);
        Tensor x64 = random_tensor<double>(shape, 1);
        y = test::run_one(*make(name, axis, 13, isa, DType::kF64), {DType::kF64}, {x64});
        check_softmax(x64.values<double>(), y[0].values<double>(), shape.elements(0, from),
                      shape[from], shape.elements(from + 1, 3), log, 1e-14);
      }
    }
  }
}

HR_TEST(softmax_flattens_axes_before_opset_13) {
  Tensor x = random_tensor<float>({4, 5, 6}, 2);
  for (Isa isa : available_isas()) {
    Tensors y = test::run_one(*make("Softmax", 1, 11, isa), {DType::kF32}, {x});
    check_softmax(x.values<float>(), y[0].values<float>(), 4, 30, 1, false, 1e-6);
  }
}

HR_TEST(softmax_rows_of_every_length) {
  for (Isa isa : available_isas()) {
    for (int64_t n = 1; n <= 140; ++n) {
      Tensor x = random_tensor<float>({2, n}, static_cast<unsigned>(n));
      Tensors y = test::run_one(*make("Softmax", -1, 13, isa), {DType::kF32}, {x});
      check_softmax(x.values<float>(), y[0].values<float>(), 2, n, 1, false, 1e-6);
    }
  }
}

HR_TEST(softmax_of_masked_rows) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (Isa isa : available_isas()) {
    auto op = make("Softmax", -1, 13, isa);
    auto run = [&](const std::vector<float>& x) {
      Tensors y = test::run_one(*op, {DType::kF32},
                                {Tensor::of<float>({1, static_cast<int64_t>(x.size())}, x)});
      return y[0].values<float>();
    };
    HR_CHECK(run({1.0f, -kInf, -FLT_MAX}) == (std::vector<float>{1.0f, 0.0f, 0.0f}));
    HR_CHECK(run({-FLT_MAX, -FLT_MAX}) == (std::vector<float>{0.5f, 0.5f}));
    HR_CHECK(std::isnan(run({-kInf, -kInf})[0]));
    HR_CHECK(std::isnan(run({1.0f, kNan, 2.0f})[0]));
    HR_CHECK(std::isnan(run({1.0f, kInf})[1]));
  }
}

HR_TEST(hardmax_takes_the_first_maximum) {
  auto op = make("Hardmax", 1, 13, available_isas().back());
  Tensors y = test::run_one(*op, {DType::kF32},
                            {Tensor::of<float>({2, 3}, {1.0f, 5.0f, 5.0f, 7.0f, -1.0f, 7.0f})});
  HR_CHECK(y[0].values<float>() == (std::vector<float>{0, 1, 0, 1, 0, 0}));
}

HR_TEST(softmax_bits_do_not_depend_on_the_batch) {
  for (Isa isa : available_isas()) {
    for (int64_t axis : {-1, 1}) {
      auto op = make("Softmax", axis, 13, isa);
      std::vector<Tensors> requests;
      for (const Shape& shape : {Shape{1, 5, 7}, Shape{0, 3, 3}, Shape{40, 31, 33}, Shape{2, 0, 4},
                                 Shape{7, 1, 130}, Shape{3, 9, 1}}) {
        requests.push_back({random_tensor<float>(shape, 9)});
      }
      std::vector<Tensors> together = test::run_op(*op, {DType::kF32}, requests, 3);
      for (size_t r = 0; r < requests.size(); ++r) {
        HR_CHECK(together[r][0].shape == requests[r][0].shape);
        HR_CHECK(together[r][0].bytes == test::run_one(*op, {DType::kF32}, requests[r])[0].bytes);
      }
    }
  }
}

HR_TEST(softmax_refuses_what_it_cannot_run) {
  Isa isa = available_isas().back();
  HR_CHECK_THROWS(make("Softmax", -1, 13, isa, DType::kI32), Error);
  auto op = make("Softmax", 2, 13, isa);
  HR_CHECK_THROWS(test::run_one(*op, {DType::kF32}, {Tensor::of<float>({1, 1}, {1.0f})}), Error);
}

}  // namespace
}  // namespace headrace
