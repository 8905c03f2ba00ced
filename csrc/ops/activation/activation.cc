// Unary ops on numbers: activations, elementary functions, rounding.
//
// float32 has vector kernels for what models use in bulk; the other float dtypes, and functions
// that only feature engineering uses, go through libm in double, element by element.
#include "ops/activation/activation.h"

#include <cmath>

#include "core/visit.h"
#include "ops/op.h"
#include "ops/rooms.h"
#include "ops/rows.h"

namespace headrace {
namespace {

using ScalarFunction = double (*)(double x, double alpha, double beta);

// An attribute's name and the value it has when absent; no name for an op without.
struct Coefficient {
  const char* name = nullptr;
  double fallback = 0.0;
};

struct UnaryFunction {
  const char* op;
  ScalarFunction scalar;
  UnaryKernel ActivationKernels::* kernel = nullptr;  // float32
  Coefficient alpha;
  Coefficient beta;
};

// numpy's maximum and minimum: NaN wins.
double max_of(double a, double b) {
  return std::isnan(a) || a > b ? a : b;
}
double min_of(double a, double b) {
  return std::isnan(a) || a < b ? a : b;
}
double sigmoid_of(double x) {
  double e = std::exp(-std::abs(x));
  return (x < 0 ? e : 1.0) / (1.0 + e);
}
double softplus_of(double x) {
  return max_of(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}
double clamp_01(double x) {
  return max_of(min_of(x, 1.0), 0.0);
}

using K = ActivationKernels;

const UnaryFunction kFunctions[] = {
    {"Relu", [](double x, double, double) { return max_of(x, 0.0); }, &K::relu, {}, {}},
    {"LeakyRelu",
     [](double x, double a, double) { return x < 0 ? a * x : x; },
     &K::leaky_relu,
     {"alpha", 0.01f},
     {}},
    {"Elu",
     [](double x, double a, double) { return x < 0 ? a * std::expm1(x) : x; },
     &K::elu,
     {"alpha", 1.0f},
     {}},
    {"Selu",
     [](double x, double a, double g) { return g * (x > 0 ? x : a * std::expm1(x)); },
     &K::selu,
     {"alpha", 1.67326319217681884765625f},
     {"gamma", 1.05070102214813232421875f}},
    {"Celu",
     [](double x, double a, double) { return max_of(x, 0.0) + min_of(a * std::expm1(x / a), 0.0); },
     &K::celu,
     {"alpha", 1.0f},
     {}},
    {"ThresholdedRelu",
     [](double x, double a, double) { return x <= a ? 0.0 : x; },
     &K::thresholded_relu,
     {"alpha", 1.0f},
     {}},
    {"Shrink",
     [](double x, double l, double b) { return x < -l   ? x + b
                                               : x <= l ? 0.0
                                                        : x - b; },
     &K::shrink,
     {"lambd", 0.5f},
     {"bias", 0.0f}},
    {"Sigmoid", [](double x, double, double) { return sigmoid_of(x); }, &K::sigmoid, {}, {}},
    {"HardSigmoid",
     [](double x, double a, double b) { return clamp_01(a * x + b); },
     &K::hard_sigmoid,
     {"alpha", 0.2f},
     {"beta", 0.5f}},
    {"Swish",
     [](double x, double a, double) { return x * sigmoid_of(a * x); },
     &K::swish,
     {"alpha", 1.0f},
     {}},
    {"HardSwish",
     [](double x, double a, double b) { return x * clamp_01(a * x + b); },
     &K::hard_swish,
     {nullptr, 1.0 / 6.0},
     {nullptr, 0.5}},
    {"Mish",
     [](double x, double, double) { return x * std::tanh(softplus_of(x)); },
     &K::mish,
     {},
     {}},
    {"Tanh", [](double x, double, double) { return std::tanh(x); }, &K::tanh, {}, {}},
    {"Erf", [](double x, double, double) { return std::erf(x); }, &K::erf, {}, {}},
    {"Exp", [](double x, double, double) { return std::exp(x); }, &K::exp, {}, {}},
    {"Log", [](double x, double, double) { return std::log(x); }, &K::log, {}, {}},
    {"Softplus", [](double x, double, double) { return softplus_of(x); }, &K::softplus, {}, {}},
    {"Softsign",
     [](double x, double, double) { return x / (1.0 + std::abs(x)); },
     &K::softsign,
     {},
     {}},
    {"Sqrt", [](double x, double, double) { return std::sqrt(x); }, &K::sqrt, {}, {}},
    {"Reciprocal", [](double x, double, double) { return 1.0 / x; }, &K::reciprocal, {}, {}},
    {"Floor", [](double x, double, double) { return std::floor(x); }, &K::floor, {}, {}},
    {"Ceil", [](double x, double, double) { return std::ceil(x); }, &K::ceil, {}, {}},
    {"Round", [](double x, double, double) { return std::nearbyint(x); }, &K::round, {}, {}},
    {"Abs", [](double x, double, double) { return std::abs(x); }, &K::abs, {}, {}},
    {"Neg", [](double x, double, double) { return -x; }, &K::neg, {}, {}},
    {"Sin", [](double x, double, double) { return std::sin(x); }, nullptr, {}, {}},
    {"Cos", [](double x, double, double) { return std::cos(x); }, nullptr, {}, {}},
    {"Tan", [](double x, double, double) { return std::tan(x); }, nullptr, {}, {}},
    {"Asin", [](double x, double, double) { return std::asin(x); }, nullptr, {}, {}},
    {"Acos", [](double x, double, double) { return std::acos(x); }, nullptr, {}, {}},
    {"Atan", [](double x, double, double) { return std::atan(x); }, nullptr, {}, {}},
    {"Sinh", [](double x, double, double) { return std::sinh(x); }, nullptr, {}, {}},
    {"Cosh", [](double x, double, double) { return std::cosh(x); }, nullptr, {}, {}},
    {"Asinh", [](double x, double, double) { return std::asinh(x); }, nullptr, {}, {}},
    {"Acosh", [](double x, double, double) { return std::acosh(x); }, nullptr, {}, {}},
    {"Atanh", [](double x, double, double) { return std::atanh(x); }, nullptr, {}, {}},
};

const UnaryFunction kGeluErf = {
    "Gelu",
    [](double x, double, double) { return 0.5 * x * std::erfc(x * -0.70710678118654752); },
    &K::gelu_erf,
    {},
    {}};
const UnaryFunction kGeluTanh = {
    "Gelu",
    [](double x, double, double) {
      return x * sigmoid_of(1.5957691216057308 * (x + 0.044715 * x * x * x));
    },
    &K::gelu_tanh,
    {},
    {}};

// Cheap enough per element that only the memory counts, or not.
constexpr int64_t kMinScalarElementsPerThread = 1024;

// Base of ops that work on the elements of all Requests as on one long row.
class UnaryOp : public Op {
 public:
  explicit UnaryOp(DType dtype, int64_t min_elements)
      : size_(size_of(dtype)), min_elements_(min_elements) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }
  bool can_overwrite(size_t input) const override { return input == 0; }
  bool element_wise() const override { return true; }

  void run(const OpRun& run) const override {
    const Segments& x = run.input(0);
    const Segments& y = run.output(0);
    const bool streams = run.stores_past_caches() && x.data != y.data;
    if (!x.shared) return apply_all(run, x.data, y.data, y.elements(), streams);
    for (size_t r = 0; r < run.requests(); ++r) {
      apply_all(run, x.data, y.data + y.offsets[r] * size_, x.elements(), streams);
    }
  }

 protected:
  // `streams`: y is large and not x, store past the caches.
  virtual void apply(const std::byte* x, std::byte* y, int64_t n, bool streams) const = 0;

 private:
  void apply_all(const OpRun& run, const std::byte* x, std::byte* y, int64_t n,
                 bool streams) const {
    run.parallel_ranges(n, min_elements_, [&](int64_t begin, int64_t end, int) {
      apply(x + begin * size_, y + begin * size_, end - begin, streams);
    });
  }

  int64_t size_;
  int64_t min_elements_;
};

class VectorUnary final : public UnaryOp {
 public:
  VectorUnary(UnaryKernel kernel, float alpha, float beta)
      : UnaryOp(DType::kF32, kMinElementsPerThread), kernel_(kernel), alpha_(alpha), beta_(beta) {}

 private:
  void apply(const std::byte* x, std::byte* y, int64_t n, bool streams) const override {
    kernel_(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n, alpha_, beta_,
            streams);
  }

  UnaryKernel kernel_;
  float alpha_;
  float beta_;
};

template <class T>
class ScalarUnary final : public UnaryOp {
 public:
  ScalarUnary(ScalarFunction function, double alpha, double beta)
      : UnaryOp(kDTypeOf<T>, kMinScalarElementsPerThread),
        function_(function),
        alpha_(alpha),
        beta_(beta) {}

 private:
  void apply(const std::byte* x, std::byte* y, int64_t n, bool /*streams*/) const override {
    const T* in = reinterpret_cast<const T*>(x);
    T* out = reinterpret_cast<T*>(y);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<T>(function_(static_cast<double>(in[i]), alpha_, beta_));
    }
  }

  ScalarFunction function_;
  double alpha_;
  double beta_;
};

// Relu, Abs and Neg of integers, which wrap around as numpy's do.
enum class IntFunction { kRelu, kAbs, kNeg };

template <class T>
class IntUnary final : public UnaryOp {
 public:
  explicit IntUnary(IntFunction function)
      : UnaryOp(kDTypeOf<T>, kMinElementsPerThread), function_(function) {}

 private:
  void apply(const std::byte* x, std::byte* y, int64_t n, bool /*streams*/) const override {
    using Unsigned = std::make_unsigned_t<T>;
    const T* in = reinterpret_cast<const T*>(x);
    T* out = reinterpret_cast<T*>(y);
    for (int64_t i = 0; i < n; ++i) {
      T negated = static_cast<T>(Unsigned{0} - static_cast<Unsigned>(in[i]));
      bool negative = in[i] < T{0};
      switch (function_) {
        case IntFunction::kRelu:
          out[i] = negative ? T{0} : in[i];
          break;
        case IntFunction::kAbs:
          out[i] = negative ? negated : in[i];
          break;
        case IntFunction::kNeg:
          out[i] = negated;
          break;
      }
    }
  }

  IntFunction function_;
};

std::unique_ptr<Op> make_int_unary(const NodeSpec& spec) {
  std::unique_ptr<Op> op;
  DType dtype = spec.input_dtypes.at(0);
  IntFunction function = spec.op == "Relu"  ? IntFunction::kRelu
                         : spec.op == "Abs" ? IntFunction::kAbs
                                            : IntFunction::kNeg;
  if (spec.op == "Relu" || spec.op == "Abs" || spec.op == "Neg") {
    visit_dtype(Ints{}, dtype, [&]<class T>() { op = std::make_unique<IntUnary<T>>(function); });
  }
  if (!op) spec.unsupported(str("no kernel for ", name_of(dtype)));
  return op;
}

std::unique_ptr<Op> make_function(const NodeSpec& spec, const UnaryFunction& function) {
  auto value_of = [&](const Coefficient& coefficient) -> double {
    if (coefficient.name == nullptr) return coefficient.fallback;
    return spec.float_or(coefficient.name, static_cast<float>(coefficient.fallback));
  };
  double alpha = value_of(function.alpha);
  double beta = value_of(function.beta);
  DType dtype = spec.input_dtypes.at(0);
  if (dtype == DType::kF32 && function.kernel != nullptr) {
    UnaryKernel kernel = HEADRACE_KERNELS(spec.isa, activation_kernels).*function.kernel;
    return std::make_unique<VectorUnary>(kernel, static_cast<float>(alpha),
                                         static_cast<float>(beta));
  }
  std::unique_ptr<Op> op;
  visit_dtype(Floats{}, dtype, [&]<class T>() {
    op = std::make_unique<ScalarUnary<T>>(function.scalar, alpha, beta);
  });
  return op ? std::move(op) : make_int_unary(spec);
}

std::unique_ptr<Op> make_unary(const NodeSpec& spec) {
  for (const UnaryFunction& function : kFunctions) {
    if (spec.op == function.op) return make_function(spec, function);
  }
  spec.invalid("not in the table of unary functions; this is a bug");
}

std::unique_ptr<Op> make_gelu(const NodeSpec& spec) {
  std::string approximate = spec.string_or("approximate", "none");
  if (approximate == "none") return make_function(spec, kGeluErf);
  if (approximate == "tanh") return make_function(spec, kGeluTanh);
  spec.invalid(str("attribute 'approximate': got '", approximate, "', expected none or tanh"));
}

}  // namespace

void register_activation_ops(OpRegistry& registry) {
  for (const UnaryFunction& function : kFunctions) registry.add(function.op, make_unary);
  registry.add("Gelu", make_gelu);
}

}  // namespace headrace
