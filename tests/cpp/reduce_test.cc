#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec spec_of(std::string op, std::vector<int64_t> axes, Isa isa) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 13;
  spec.attributes["axes"] = std::move(axes);
  spec.attributes["keepdims"] = int64_t{0};
  spec.input_dtypes = {DType::kF32};
  spec.output_dtypes = {DType::kF32};
  spec.constants.resize(1);
  spec.isa = isa;
  return spec;
}

std::unique_ptr<Op> make(std::string op, std::vector<int64_t> axes, Isa isa) {
  return OpRegistry::global().make(spec_of(std::move(op), std::move(axes), isa));
}

Tensor random_floats(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of<float>(shape, values);
}

// What the reduction makes of one group of elements, in double.
double expected(const std::string& op, const std::vector<float>& group) {
  double sum = 0, abs = 0, square = 0, product = 1;
  double max = -INFINITY, min = INFINITY, exps = 0;
  for (float x : group) {
    sum += x;
    abs += std::abs(x);
    square += double{x} * x;
    product *= x;
    max = std::max<double>(max, x);
    min = std::min<double>(min, x);
    exps += std::exp(double{x});
  }
  if (op == "ReduceSum") return sum;
  if (op == "ReduceMean") return sum / static_cast<double>(group.size());
  if (op == "ReduceMax") return max;
  if (op == "ReduceMin") return min;
  if (op == "ReduceProd") return product;
  if (op == "ReduceL1") return abs;
  if (op == "ReduceL2") return std::sqrt(square);
  if (op == "ReduceSumSquare") return square;
  return std::log(exps);
}

// The groups of x in the order of the outputs.
std::vector<std::vector<float>> groups(const Tensor& x, const std::vector<int64_t>& axes) {
  std::vector<std::vector<float>> all;
  std::vector<float> values = x.values<float>();
  for (int64_t i = 0; i < x.shape.elements(); ++i) {
    int64_t rest = i, out = 0, step = 1;
    for (int axis = x.shape.rank() - 1; axis >= 0; --axis) {
      int64_t at = rest % x.shape[axis];
      rest /= x.shape[axis];
      if (std::ranges::count(axes, axis) > 0) continue;
      out += at * step;
      step *= x.shape[axis];
    }
    if (all.size() <= static_cast<size_t>(out)) all.resize(static_cast<size_t>(out) + 1);
    all[static_cast<size_t>(out)].push_back(values[static_cast<size_t>(i)]);
  }
  return all;
}

const char* const kOps[] = {"ReduceSum", "ReduceMean",      "ReduceMax",
                            "ReduceMin", "ReduceProd",      "ReduceL1",
                            "ReduceL2",  "ReduceSumSquare", "ReduceLogSumExp"};

HR_TEST(reductions_match_their_formulas_along_any_axes_on_every_isa) {
  const std::vector<int64_t> axes_sets[] = {{2}, {1}, {0}, {0, 2}, {1, 2}, {0, 1, 2}};
  for (Isa isa : available_isas()) {
    for (const char* name : kOps) {
      for (const auto& axes : axes_sets) {
        for (const Shape& shape : {Shape{3, 5, 70}, Shape{2, 1, 7}, Shape{1, 40, 65}}) {
          Tensor x = random_floats(shape, 5);
          Tensors y = test::run_one(*make(name, axes, isa), {DType::kF32}, {x});
          std::vector<std::vector<float>> wanted = groups(x, axes);
          HR_CHECK_EQ(y[0].shape.elements(), static_cast<int64_t>(wanted.size()));
          std::vector<float> got = y[0].values<float>();
          for (size_t i = 0; i < wanted.size(); ++i) {
            HR_CHECK_NEAR(got[i], expected(name, wanted[i]), 1e-4);
          }
        }
      }
    }
  }
}

HR_TEST(reductions_give_the_same_bits_in_any_batch) {
  for (Isa isa : available_isas()) {
    for (const char* name : kOps) {
      for (const std::vector<int64_t>& axes : {std::vector<int64_t>{1}, {2}, {0, 2}}) {
        auto op = make(name, axes, isa);
        std::vector<Tensors> requests;
        for (int64_t n : {1, 33, 5, 400}) {
          requests.push_back({random_floats({2, n, 48}, static_cast<unsigned>(n))});
        }
        auto together = test::run_op(*op, {DType::kF32}, requests, 3);
        for (size_t r = 0; r < requests.size(); ++r) {
          HR_CHECK(test::run_one(*op, {DType::kF32}, requests[r])[0].bytes == together[r][0].bytes);
        }
      }
    }
  }
}

HR_TEST(the_least_integer_wraps_where_its_size_is_summed) {
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  NodeSpec spec = spec_of("ReduceL1", {1}, Isa::kReference);
  spec.input_dtypes = spec.output_dtypes = {DType::kI32};
  Tensor x = Tensor::of<int32_t>({1, 2}, {kLeast, -5});
  Tensors y = test::run_one(*OpRegistry::global().make(spec), {DType::kI32}, {x});
  HR_CHECK_EQ(y[0].values<int32_t>().at(0), kLeast + 5);
}

HR_TEST(reducing_nothing_gives_the_identity) {
  for (Isa isa : available_isas()) {
    Tensor empty = random_floats({2, 0, 3}, 1);
    auto first = [&](const char* op) {
      return test::run_one(*make(op, {1}, isa), {DType::kF32}, {empty})[0].values<float>().at(5);
    };
    HR_CHECK_EQ(first("ReduceSum"), 0.0f);
    HR_CHECK_EQ(first("ReduceProd"), 1.0f);
    HR_CHECK_EQ(first("ReduceMax"), -INFINITY);
    HR_CHECK_EQ(first("ReduceMin"), INFINITY);
    HR_CHECK(std::isnan(first("ReduceMean")));
  }
}

}  // namespace
}  // namespace headrace
