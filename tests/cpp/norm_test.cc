#include <cmath>
#include <random>

#include "check.h"
#include "op_harness.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec norm(std::string op, size_t inputs, Isa isa, DType dtype = DType::kF32) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 23;
  spec.input_dtypes.assign(inputs, dtype);
  spec.output_dtypes = {dtype};
  spec.constants.resize(inputs);
  spec.isa = isa;
  return spec;
}

template <class T = float>
Tensor random_tensor(const Shape& shape, unsigned seed, double mean = 0.5, double deviation = 2.0) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(mean, deviation);
  std::vector<T> values(static_cast<size_t>(shape.elements()));
  for (T& value : values) value = static_cast<T>(normal(random));
  return Tensor::of<T>(shape, values);
}

Tensor positive(const Shape& shape, unsigned seed) {
  std::vector<float> values = random_tensor(shape, seed).values<float>();
  for (float& value : values) value = std::abs(value) + 0.1f;
  return Tensor::of<float>(shape, values);
}

struct Moments {
  double mean = 0;
  double inv_std_dev = 0;
};

template <class T>
Moments moments(const T* x, int64_t n, double epsilon, bool centered = true) {
  double mean = 0;
  for (int64_t i = 0; i < n && centered; ++i) mean += x[i];
  mean /= static_cast<double>(n);
  double variance = 0;
  for (int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0 / std::sqrt(variance / static_cast<double>(n) + epsilon)};
}

template <class T>
void check_layer_norm(bool centered, int64_t rows, int64_t n, Isa isa, double tolerance) {
  constexpr DType kType = kDTypeOf<T>;
  NodeSpec spec =
      norm(centered ? "LayerNormalization" : "RMSNormalization", centered ? 3 : 2, isa, kType);
  spec.attributes["epsilon"] = 1e-3;
  auto op = OpRegistry::global().make(spec);
  auto seed = static_cast<unsigned>(n);
  // A mean far from 0 is where a one-pass variance would fail.
  Tensors inputs{random_tensor<T>({rows, n}, seed, centered ? 100.0 : 0.5),
                 random_tensor<T>({n}, seed + 1)};
  if (centered) inputs.push_back(random_tensor<T>({n}, seed + 2));
  std::vector<T> x = inputs[0].values<T>();
  std::vector<T> y = test::run_one(*op, {kType}, inputs)[0].template values<T>();
  std::vector<T> scale = inputs[1].values<T>();
  std::vector<T> bias = centered ? inputs[2].values<T>() : std::vector<T>(y.size(), T{0});
  for (int64_t row = 0; row < rows; ++row) {
    Moments m = moments(x.data() + row * n, n, static_cast<double>(1e-3f), centered);
    for (int64_t i = 0; i < n; ++i) {
      auto at = static_cast<size_t>(row * n + i);
      auto column = static_cast<size_t>(i);
      HR_CHECK_NEAR(y[at], (x[at] - m.mean) * m.inv_std_dev * scale[column] + bias[column],
                    tolerance);
    }
  }
}

HR_TEST(layer_norm_matches_its_formula) {
  for (Isa isa : available_isas()) {
    for (int64_t n : {1, 2, 3, 7, 16, 31, 64, 65, 384, 1000}) {
      check_layer_norm<float>(true, 5, n, isa, 1e-4);
      check_layer_norm<float>(false, 5, n, isa, 1e-5);
      check_layer_norm<double>(true, 2, n, isa, 1e-10);
      check_layer_norm<double>(false, 2, n, isa, 1e-12);
    }
  }
}

HR_TEST(layer_norm_gives_mean_and_inverse_deviation) {
  for (Isa isa : available_isas()) {
    NodeSpec spec = norm("LayerNormalization", 2, isa);
    spec.attributes["axis"] = int64_t{1};
    spec.output_dtypes = {DType::kF32, DType::kF32, DType::kF32};
    auto op = OpRegistry::global().make(spec);
    Tensors inputs{random_tensor({3, 4, 5}, 1), random_tensor({4, 5}, 2)};
    Tensors outputs = test::run_one(*op, spec.output_dtypes, inputs);
    HR_CHECK(outputs[1].shape == (Shape{3, 1, 1}));
    HR_CHECK(outputs[2].shape == (Shape{3, 1, 1}));
    std::vector<float> x = inputs[0].values<float>();
    for (int64_t row = 0; row < 3; ++row) {
      Moments m = moments(x.data() + row * 20, 20, 1e-5);
      HR_CHECK_NEAR(outputs[1].values<float>()[static_cast<size_t>(row)], m.mean, 1e-6);
      HR_CHECK_NEAR(outputs[2].values<float>()[static_cast<size_t>(row)], m.inv_std_dev, 1e-6);
    }
  }
}

HR_TEST(layer_norm_bits_do_not_depend_on_the_batch) {
  constexpr int64_t kWidth = 77;
  std::vector<float> scale = random_tensor({kWidth}, 1).values<float>();
  std::vector<float> bias = random_tensor({kWidth}, 2).values<float>();
  for (Isa isa : available_isas()) {
    auto make_plan = [&](int threads) {
      ProgramBuilder builder(isa);
      ValueId x = builder.add_input({"x", DType::kF32, {{-1, "rows"}, {kWidth, ""}}});
      ValueId s = builder.add_constant("s", {DType::kF32, Shape{kWidth}, scale.data()}, nullptr);
      ValueId b = builder.add_constant("b", {DType::kF32, Shape{kWidth}, bias.data()}, nullptr);
      NodeSpec spec;
      spec.op = "LayerNormalization";
      spec.opset = 17;
      spec.output_dtypes = {DType::kF32};
      ValueId y = builder.add_op(spec, {x, s, b}, {"y"})[0];
      builder.add_output({"y", DType::kF32, {{-1, "rows"}, {kWidth, ""}}}, y);
      return std::make_unique<Plan>(builder.finish(), threads);
    };
    std::vector<Tensor> inputs;
    for (int64_t rows : {1, 900, 0, 33}) {
      inputs.push_back(random_tensor({rows, kWidth}, static_cast<unsigned>(rows)));
    }
    std::vector<ConstTensorView> views;
    for (const Tensor& input : inputs) views.push_back(input.view());
    std::vector<RequestInputs> requests;
    for (const ConstTensorView& view : views) requests.push_back({&view, 1});
    auto together = make_plan(3);
    auto alone = make_plan(1);
    Run batch = together->run(requests);
    for (size_t r = 0; r < requests.size(); ++r) {
      Run single = alone->run({&requests[r], 1});
      HR_CHECK(
          std::ranges::equal(batch.output(r, 0).span<float>(), single.output(0, 0).span<float>()));
    }
  }
}

void check_batch_norm(bool constant, const Shape& shape, Isa isa) {
  int64_t channels = shape[1];
  int64_t plane = shape.elements(2, shape.rank());
  Tensors inputs{random_tensor(shape, 1), random_tensor({channels}, 2),
                 random_tensor({channels}, 3), random_tensor({channels}, 4),
                 positive({channels}, 5)};
  NodeSpec spec = norm("BatchNormalization", 5, isa);
  for (size_t i = 1; constant && i < 5; ++i) spec.constants[i] = inputs[i].view();
  auto op = OpRegistry::global().make(spec);
  Tensors given = inputs;
  for (size_t i = 1; i < 5; ++i) {
    HR_CHECK_EQ(op->consumes(i), constant);
    if (constant) given[i] = {};
  }
  std::vector<float> y = test::run_one(*op, {DType::kF32}, given)[0].values<float>();
  std::vector<float> x = inputs[0].values<float>();
  for (size_t i = 0; i < y.size(); ++i) {
    auto c = static_cast<size_t>(static_cast<int64_t>(i) / plane % channels);
    double normal = (x[i] - inputs[3].values<float>()[c]) /
                    std::sqrt(inputs[4].values<float>()[c] + static_cast<double>(1e-5f));
    HR_CHECK_NEAR(y[i], normal * inputs[1].values<float>()[c] + inputs[2].values<float>()[c], 3e-6);
  }
}

HR_TEST(batch_norm_matches_its_formula) {
  for (Isa isa : available_isas()) {
    for (bool constant : {false, true}) {
      check_batch_norm(constant, {3, 19}, isa);
      check_batch_norm(constant, {2, 5, 3, 7}, isa);
    }
  }
}

// `groups` of 0 stands for InstanceNormalization.
void check_group_norm(int64_t groups, int64_t opset, Isa isa) {
  Shape shape{2, 6, 3, 5};
  NodeSpec spec = norm(groups == 0 ? "InstanceNormalization" : "GroupNormalization", 3, isa);
  spec.opset = opset;
  if (groups > 0) spec.attributes["num_groups"] = groups;
  auto op = OpRegistry::global().make(spec);
  bool per_group = groups > 0 && opset < 21;
  int64_t parameters = per_group ? groups : 6;
  Tensors inputs{random_tensor(shape, 1), random_tensor({parameters}, 2),
                 random_tensor({parameters}, 3)};
  std::vector<float> y = test::run_one(*op, {DType::kF32}, inputs)[0].values<float>();
  std::vector<float> x = inputs[0].values<float>();
  int64_t per = 6 / (groups == 0 ? 6 : groups);
  for (int64_t c = 0; c < 12; ++c) {
    Moments m = moments(x.data() + c / per * per * 15, per * 15, 1e-5);
    auto at = static_cast<size_t>(per_group ? c % 6 / per : c % 6);
    for (int64_t i = 0; i < 15; ++i) {
      auto e = static_cast<size_t>(c * 15 + i);
      double expected = (x[e] - m.mean) * m.inv_std_dev * inputs[1].values<float>()[at] +
                        inputs[2].values<float>()[at];
      HR_CHECK_NEAR(y[e], expected, 3e-6);
    }
  }
}

HR_TEST(group_norm_matches_its_formula) {
  for (Isa isa : available_isas()) {
    check_group_norm(0, 20, isa);
    check_group_norm(2, 18, isa);
    check_group_norm(3, 18, isa);
    check_group_norm(2, 21, isa);
    check_group_norm(6, 21, isa);
  }
}

HR_TEST(lp_norm_matches_its_formula) {
  NodeSpec spec = norm("LpNormalization", 1, available_isas().back());
  spec.attributes["axis"] = int64_t{0};
  Tensor x = Tensor::of<float>({2, 3}, {3, -1, 0, -4, 1, 0});
  auto run = [&](int64_t p) {
    spec.attributes["p"] = p;
    return test::run_one(*OpRegistry::global().make(spec), {DType::kF32}, {x})[0].values<float>();
  };
  HR_CHECK(run(1) == (std::vector<float>{3.0f / 7, -0.5f, 0, -4.0f / 7, 0.5f, 0}));
  HR_CHECK_NEAR(run(2)[0], 0.6, 1e-7);
  HR_CHECK_NEAR(run(2)[3], -0.8, 1e-7);
  HR_CHECK(run(2)[2] == 0.0f);
}

HR_TEST(lrn_looks_at_channels_around) {
  for (int64_t size : {1, 2, 3, 5}) {
    NodeSpec spec = norm("LRN", 1, available_isas().back());
    spec.attributes["size"] = size;
    spec.attributes["alpha"] = 0.5;
    spec.attributes["bias"] = 2.0;
    Tensor input = random_tensor({2, 4, 3, 2}, 7);
    std::vector<float> x = input.values<float>();
    std::vector<float> y =
        test::run_one(*OpRegistry::global().make(spec), {DType::kF32}, {input})[0].values<float>();
    for (int64_t i = 0; i < 48; ++i) {
      int64_t c = i / 6 % 4;
      double squares = 0;
      for (int64_t k = 0; k < 4; ++k) {
        bool inside =
            k >= c - (size - 1) / 2 && k <= c + static_cast<int64_t>(std::ceil((size - 1) / 2.0));
        auto value = static_cast<double>(x[static_cast<size_t>(i + (k - c) * 6)]);
        if (inside) squares += value * value;
      }
      auto at = static_cast<size_t>(i);
      HR_CHECK_NEAR(y[at], x[at] / std::pow(2.0 + 0.5 / static_cast<double>(size) * squares, 0.75),
                    1e-6);
    }
  }
}

HR_TEST(norms_refuse_what_they_cannot_run) {
  Isa isa = available_isas().back();
  NodeSpec training = norm("BatchNormalization", 5, isa);
  training.attributes["training_mode"] = int64_t{1};
  HR_CHECK_THROWS(OpRegistry::global().make(training), Error);
  NodeSpec stash = norm("LayerNormalization", 2, isa);
  stash.attributes["stash_type"] = int64_t{11};
  HR_CHECK_THROWS(OpRegistry::global().make(stash), Error);
  auto op = OpRegistry::global().make(norm("LayerNormalization", 2, isa));
  HR_CHECK_THROWS(
      test::run_one(*op, {DType::kF32}, {random_tensor({2, 4}, 1), random_tensor({3}, 1)}), Error);
}

}  // namespace
}  // namespace headrace
