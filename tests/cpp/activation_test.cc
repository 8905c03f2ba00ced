#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec unary(std::string op, DType dtype, Isa isa) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 24;
  spec.input_dtypes = {dtype};
  spec.output_dtypes = {dtype};
  spec.constants.resize(1);
  spec.isa = isa;
  return spec;
}

template <class T>
std::vector<T> evaluate(const NodeSpec& spec, const std::vector<T>& x, int threads = 1) {
  auto op = OpRegistry::global().make(spec);
  Tensors inputs{Tensor::of<T>({static_cast<int64_t>(x.size())}, x)};
  return test::run_one(*op, {spec.output_dtypes[0]}, inputs, threads)[0].template values<T>();
}

struct Case {
  const char* op;
  double (*exact)(double);
  std::map<std::string, Attribute, std::less<>> attributes;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"Relu", [](double x) { return x > 0 ? x : 0; }, {}},
      {"LeakyRelu", [](double x) { return x > 0 ? x : 0.25 * x; }, {{"alpha", 0.25}}},
      {"Elu", [](double x) { return x > 0 ? x : 2.0 * (std::exp(x) - 1); }, {{"alpha", 2.0}}},
      {"Selu",
       [](double x) {
         return 1.05070102214813232 * (x > 0 ? x : 1.67326319217681885 * (std::exp(x) - 1));
       },
       {}},
      {"Celu",
       [](double x) { return std::fmax(x, 0) + std::fmin(0, 2.0 * (std::exp(x / 2.0) - 1)); },
       {{"alpha", 2.0}}},
      {"ThresholdedRelu", [](double x) { return x > 1.5 ? x : 0; }, {{"alpha", 1.5}}},
      {"Shrink",
       [](double x) { return x < -1.5  ? x + 0.5
                             : x > 1.5 ? x - 0.5
                                       : 0; },
       {{"lambd", 1.5}, {"bias", 0.5}}},
      {"Sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }, {}},
      {"HardSigmoid", [](double x) { return std::fmax(0, std::fmin(1, 0.2f * x + 0.5)); }, {}},
      {"Swish", [](double x) { return x / (1 + std::exp(-0.5 * x)); }, {{"alpha", 0.5}}},
      {"HardSwish", [](double x) { return x * std::fmax(0, std::fmin(1, x / 6 + 0.5)); }, {}},
      {"Mish", [](double x) { return x * std::tanh(std::log1p(std::exp(x))); }, {}},
      {"Gelu", [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }, {}},
      {"Gelu",
       [](double x) {
         return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
       },
       {{"approximate", std::string("tanh")}}},
      {"Softplus", [](double x) { return std::log1p(std::exp(x)); }, {}},
      {"Softsign", [](double x) { return x / (1 + std::abs(x)); }, {}},
      {"Tanh", [](double x) { return std::tanh(x); }, {}},
      {"Erf", [](double x) { return std::erf(x); }, {}},
      {"Exp", [](double x) { return std::exp(x); }, {}},
      {"Log", [](double x) { return std::log(x); }, {}},
      {"Sqrt", [](double x) { return std::sqrt(x); }, {}},
      {"Reciprocal", [](double x) { return 1 / x; }, {}},
      {"Abs", [](double x) { return std::abs(x); }, {}},
      {"Neg", [](double x) { return -x; }, {}},
      {"Floor", [](double x) { return std::floor(x); }, {}},
      {"Ceil", [](double x) { return std::ceil(x); }, {}},
      {"Round", [](double x) { return std::nearbyint(x); }, {}},
      {"Sin", [](double x) { return std::sin(x); }, {}},
      {"Cos", [](double x) { return std::cos(x); }, {}},
      {"Tan", [](double x) { return std::tan(x); }, {}},
      {"Asin", [](double x) { return std::asin(x); }, {}},
      {"Acos", [](double x) { return std::acos(x); }, {}},
      {"Atan", [](double x) { return std::atan(x); }, {}},
      {"Sinh", [](double x) { return std::sinh(x); }, {}},
      {"Cosh", [](double x) { return std::cosh(x); }, {}},
      {"Asinh", [](double x) { return std::asinh(x); }, {}},
      {"Acosh", [](double x) { return std::acosh(x); }, {}},
      {"Atanh", [](double x) { return std::atanh(x); }, {}},
  };
  return all;
}

// 61 values from -6 to 6, which every vector width leaves a tail of; halves are among them.
std::vector<double> sweep() {
  std::vector<double> x;
  for (int i = -30; i <= 30; ++i) x.push_back(i * 0.2 + (i % 5 == 0 ? 0.5 : 0.0));
  return x;
}

template <class T>
void check_function(const Case& c, Isa isa, double tolerance) {
  NodeSpec spec = unary(c.op, kDTypeOf<T>, isa);
  spec.attributes = c.attributes;
  std::vector<T> x;
  for (double value : sweep()) x.push_back(static_cast<T>(value));
  std::vector<T> y = evaluate(spec, x);
  for (size_t i = 0; i < x.size(); ++i) {
    auto exact = c.exact(static_cast<double>(x[i]));
    auto got = static_cast<double>(y[i]);
    bool both_nan = std::isnan(exact) && std::isnan(got);
    if (both_nan || exact == got) continue;
    if (std::abs(got - exact) <= tolerance * std::fmax(1, std::abs(exact))) continue;
    test::report(__FILE__, __LINE__, name_of(isa), " ", c.op, "<", name_of(kDTypeOf<T>), ">(",
                 static_cast<double>(x[i]), "): got ", got, ", expected ", exact);
  }
}

HR_TEST(unary_functions_match_their_formulas) {
  for (Isa isa : available_isas()) {
    for (const Case& c : cases()) {
      check_function<float>(c, isa, 1e-6);
      check_function<double>(c, isa, 1e-14);
    }
  }
}

HR_TEST(unary_functions_keep_nan) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  for (Isa isa : available_isas()) {
    for (const Case& c : cases()) {
      NodeSpec spec = unary(c.op, DType::kF32, isa);
      spec.attributes = c.attributes;
      if (!std::isnan(evaluate<float>(spec, {nan})[0])) {
        test::report(__FILE__, __LINE__, name_of(isa), " ", c.op, " loses NaN");
      }
    }
  }
}

HR_TEST(rounding_keeps_the_sign_of_zero) {
  for (Isa isa : available_isas()) {
    for (const char* op : {"Ceil", "Round"}) {
      std::vector<float> y =
          evaluate<float>(unary(op, DType::kF32, isa), {-0.3f, -0.0f, 0.3f - 0.3f});
      HR_CHECK(y[0] == 0.0f && std::signbit(y[0]));
      HR_CHECK(y[1] == 0.0f && std::signbit(y[1]));
      HR_CHECK(!std::signbit(y[2]));
    }
    std::vector<float> y = evaluate<float>(unary("Floor", DType::kF32, isa), {-0.0f, 3e9f, -3e9f});
    HR_CHECK(std::signbit(y[0]));
    HR_CHECK_EQ(y[1], 3e9f);
    HR_CHECK_EQ(y[2], -3e9f);
    float ceiling = evaluate<float>(unary("Ceil", DType::kF32, isa), {-0.7f})[0];
    HR_CHECK(ceiling == 0.0f && std::signbit(ceiling));
  }
}

HR_TEST(integers_wrap_around) {
  Isa isa = available_isas().back();
  int32_t lowest = std::numeric_limits<int32_t>::min();
  HR_CHECK(evaluate<int32_t>(unary("Abs", DType::kI32, isa), {-3, 4, lowest}) ==
           (std::vector<int32_t>{3, 4, lowest}));
  HR_CHECK(evaluate<int64_t>(unary("Neg", DType::kI64, isa), {-3, 4}) ==
           (std::vector<int64_t>{3, -4}));
  HR_CHECK(evaluate<int8_t>(unary("Relu", DType::kI8, isa), {-3, 4}) ==
           (std::vector<int8_t>{0, 4}));
  HR_CHECK(evaluate<uint8_t>(unary("Abs", DType::kU8, isa), {200, 4}) ==
           (std::vector<uint8_t>{200, 4}));
}

HR_TEST(unary_bits_do_not_depend_on_the_batch) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (Isa isa : available_isas()) {
    for (const char* name : {"Gelu", "Tanh", "Exp", "Mish"}) {
      auto op = OpRegistry::global().make(unary(name, DType::kF32, isa));
      std::vector<Tensors> requests;
      for (int64_t n : {1, 0, 17, 40000, 3}) {
        std::vector<float> x(static_cast<size_t>(n));
        for (float& value : x) value = normal(random);
        requests.push_back({Tensor::of<float>({n}, x)});
      }
      std::vector<Tensors> together = test::run_op(*op, {DType::kF32}, requests, 3);
      for (size_t r = 0; r < requests.size(); ++r) {
        HR_CHECK(together[r][0].bytes == test::run_one(*op, {DType::kF32}, requests[r])[0].bytes);
      }
    }
  }
}

HR_TEST(unary_refuses_what_it_cannot_run) {
  Isa isa = available_isas().back();
  HR_CHECK_THROWS(OpRegistry::global().make(unary("Exp", DType::kI32, isa)), Error);
  HR_CHECK_THROWS(OpRegistry::global().make(unary("Relu", DType::kString, isa)), Error);
  NodeSpec gelu = unary("Gelu", DType::kF32, isa);
  gelu.attributes["approximate"] = std::string("erf");
  HR_CHECK_THROWS(OpRegistry::global().make(gelu), Error);
}

}  // namespace
}  // namespace headrace
