// The error bounds that ops/simd/math.h states, on every ISA, through the activation kernels.
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ops/activation/activation.h"

namespace headrace {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double phi(double x) {
  return 0.5 * std::erfc(-x * 0.70710678118654752440);
}
double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

// An error is within the bound if it is below `ulp` units in the last place of the result or below
// `absolute` or below `relative_to_x` * |x|. The baseline without a fused multiply-add gets 2 ulp
// more.
struct Bound {
  double ulp = 0;
  double absolute = 0;
  double relative_to_x = 0;
};

// The spacing of subnormal numbers.
constexpr double kTiny = 1.5e-45;

struct Function {
  const char* name;
  UnaryKernel ActivationKernels::* kernel;
  double (*exact)(double);
  float low, high;  // where it is swept
  Bound bound;
};

using K = ActivationKernels;
const Function kFunctions[] = {
    {"exp", &K::exp, [](double x) { return std::exp(x); }, -110, 89, {1, 0, 0}},
    {"log", &K::log, [](double x) { return std::log(x); }, 1e-40f, 100, {1, 0, 0}},
    {"tanh", &K::tanh, [](double x) { return std::tanh(x); }, -12, 12, {2, 0, 0}},
    {"erf", &K::erf, [](double x) { return std::erf(x); }, -5, 5, {3, 0, 0}},
    {"sigmoid", &K::sigmoid, sigmoid, -120, 120, {3, FLT_MIN, 0}},
    {"silu", &K::swish, [](double x) { return x * sigmoid(x); }, -90, 90, {0, kTiny, 2e-7}},
    {"gelu_erf", &K::gelu_erf, [](double x) { return x * phi(x); }, -12, 12, {0, 4e-10, 4e-7}},
    {"gelu_erf (positive)", &K::gelu_erf, [](double x) { return x * phi(x); }, 0, 12, {10, 0, 0}},
    {"gelu_tanh",
     &K::gelu_tanh,
     [](double x) { return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)); },
     -12,
     12,
     {0, kTiny, 2e-7}},
    {"softplus",
     &K::softplus,
     [](double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::abs(x))); },
     -120,
     120,
     {3, FLT_MIN, 0}},
};

// A dense sweep, numbers close to zero on both sides, and random bit patterns.
std::vector<float> arguments(const Function& function) {
  std::vector<float> x;
  constexpr int kSteps = 60000;
  for (int i = 0; i <= kSteps; ++i) {
    x.push_back(function.low + (function.high - function.low) * static_cast<float>(i) / kSteps);
    x.push_back(std::ldexp(1.0f + static_cast<float>(i % 97) / 97.0f, -i % 140));
    if (function.low < 0) x.push_back(-x.back());
  }
  std::mt19937 random(3);
  while (x.size() < 300000) {
    float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isfinite(value) && (function.low < 0 || value > 0)) x.push_back(value);
  }
  return x;
}

double ulp_of(double exact) {
  auto value = std::abs(static_cast<float>(exact));
  return static_cast<double>(std::nextafter(value, kInf)) - static_cast<double>(value);
}

void check_bound(const Function& function, Isa isa) {
  std::vector<float> x = arguments(function);
  std::vector<float> y(x.size());
  UnaryKernel kernel = HEADRACE_KERNELS(isa, activation_kernels).*function.kernel;
  kernel(x.data(), y.data(), static_cast<int64_t>(x.size()), 1.0f, 0.0f, false);
  std::vector<float> streamed(x.size());
  kernel(x.data(), streamed.data(), static_cast<int64_t>(x.size()), 1.0f, 0.0f, true);
  HR_CHECK(std::memcmp(y.data(), streamed.data(), y.size() * sizeof(float)) == 0);
  double slack = isa == Isa::kReference ? 2.0 : 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    double exact = function.exact(x[i]);
    if (!std::isfinite(static_cast<float>(exact))) {
      HR_CHECK_EQ(y[i], static_cast<float>(exact));
      continue;
    }
    double error = std::abs(y[i] - exact);
    double allowed = function.bound.absolute + function.bound.relative_to_x * std::abs(x[i]);
    double ulp = function.bound.ulp + slack;
    if (error <= allowed || error <= ulp * ulp_of(exact)) continue;
    test::report(__FILE__, __LINE__, name_of(isa), " ", function.name, "(", x[i], "): got ", y[i],
                 ", expected ", exact, ", off by ", error / ulp_of(exact), " ulp");
    return;
  }
}

HR_TEST(math_keeps_its_error_bounds) {
  for (Isa isa : available_isas()) {
    for (const Function& function : kFunctions) check_bound(function, isa);
  }
}

float value_at(Isa isa, UnaryKernel ActivationKernels::* kernel, float x) {
  float y = 0;
  (HEADRACE_KERNELS(isa, activation_kernels).*kernel)(&x, &y, 1, 1.0f, 0.0f, false);
  return y;
}

HR_TEST(math_takes_infinities_to_limits) {
  for (Isa isa : available_isas()) {
    HR_CHECK_EQ(value_at(isa, &K::exp, -kInf), 0.0f);
    HR_CHECK_EQ(value_at(isa, &K::exp, kInf), kInf);
    HR_CHECK_EQ(value_at(isa, &K::exp, 88.8f), kInf);
    HR_CHECK_EQ(value_at(isa, &K::exp, -FLT_MAX), 0.0f);
    HR_CHECK_EQ(value_at(isa, &K::exp, 0.0f), 1.0f);
    HR_CHECK_EQ(value_at(isa, &K::log, 0.0f), -kInf);
    HR_CHECK_EQ(value_at(isa, &K::log, -0.0f), -kInf);
    HR_CHECK_EQ(value_at(isa, &K::log, kInf), kInf);
    HR_CHECK(std::isnan(value_at(isa, &K::log, -1.0f)));
    HR_CHECK(std::isnan(value_at(isa, &K::log, -kInf)));
    for (auto function : {&K::tanh, &K::erf}) {
      HR_CHECK_EQ(value_at(isa, function, kInf), 1.0f);
      HR_CHECK_EQ(value_at(isa, function, -kInf), -1.0f);
      HR_CHECK(std::signbit(value_at(isa, function, -0.0f)));
    }
    HR_CHECK_EQ(value_at(isa, &K::sigmoid, kInf), 1.0f);
    HR_CHECK_EQ(value_at(isa, &K::sigmoid, -kInf), 0.0f);
    HR_CHECK_EQ(value_at(isa, &K::gelu_erf, kInf), kInf);
    HR_CHECK_NEAR(value_at(isa, &K::gelu_erf, -kInf), 0.0, 4e-10);
    HR_CHECK_EQ(value_at(isa, &K::softplus, kInf), kInf);
    HR_CHECK_EQ(value_at(isa, &K::softplus, -kInf), 0.0f);
  }
}

HR_TEST(math_keeps_nan) {
  for (Isa isa : available_isas()) {
    for (const Function& function : kFunctions) {
      if (!std::isnan(value_at(isa, function.kernel, kNan))) {
        test::report(__FILE__, __LINE__, name_of(isa), " ", function.name, " loses NaN");
      }
    }
  }
}

}  // namespace
}  // namespace headrace
