// Chains of row-wise ops give the bits that the same ops give one by one.
#include <vector>

#include "batch.h"
#include "check.h"
#include "heap.h"

namespace headrace {
namespace {

using test::Batch;
using test::make_batch;
using test::random_floats;
using test::same_bits;

constexpr int64_t kWidth = 48;
constexpr int64_t kWide = 96;

struct Weights {
  std::vector<float> up = random_floats(kWidth * kWide, 1), down = random_floats(kWide * kWidth, 2),
                     last = random_floats(kWidth * kWide, 3), scale = random_floats(kWidth, 4);
};

NodeSpec node(std::string op, const std::string& precision = "") {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = spec.op;
  spec.opset = 20;
  spec.output_dtypes = {DType::kF32};
  if (!precision.empty()) spec.attributes["precision"] = precision;
  return spec;
}

// As transformers have it: two Linears with a residual around them, a norm, another Linear. The
// norm's values leave the chain too, and the middle of the first two is bfloat16 in low precision.
Program make_program(const Weights& weights, const std::string& precision) {
  ProgramBuilder builder(selected_isa());
  TensorSpec spec{"x", DType::kF32, {{-1, "a"}, {-1, "b"}, {kWidth, ""}}};
  ValueId x = builder.add_input(spec);
  auto constant = [&](const char* name, const std::vector<float>& data, Shape shape) {
    return builder.add_constant(name, {DType::kF32, shape, data.data()}, nullptr);
  };
  ValueId up = constant("up", weights.up, {kWidth, kWide});
  ValueId down = constant("down", weights.down, {kWide, kWidth});
  ValueId last = constant("last", weights.last, {kWidth, kWide});
  ValueId scale = constant("scale", weights.scale, {kWidth});
  NodeSpec first = node("headrace.Linear", precision);
  first.attributes["activation"] = std::string("gelu_erf");
  if (precision != "fp32") first.output_dtypes = {DType::kBF16};
  ValueId h = builder.add_op(std::move(first), {x, up}, {"h"})[0];
  ValueId r = builder.add_op(node("headrace.Linear", precision), {h, down, kAbsent, x}, {"r"})[0];
  ValueId n = builder.add_op(node("LayerNormalization"), {r, scale}, {"n"})[0];
  ValueId y = builder.add_op(node("headrace.Linear", precision), {n, last}, {"y"})[0];
  builder.add_output({"n", DType::kF32, {{-1, "a"}, {-1, "b"}, {kWidth, ""}}}, n);
  builder.add_output({"y", DType::kF32, {{-1, "a"}, {-1, "b"}, {kWide, ""}}}, y);
  return builder.finish();
}

HR_TEST(row_chain_is_as_long_as_its_values_have_the_same_rows) {
  Weights weights;
  Program program = make_program(weights, "fp32");
  HR_CHECK_EQ(program.steps[0].chain, 4);
  std::vector<std::string> inner;
  for (const Value& value : program.values) {
    if (value.inner) inner.push_back(value.name);
  }
  HR_CHECK_EQ(inner.size(), size_t{2});  // h and r: n and y are results
  HR_CHECK(inner == std::vector<std::string>({"h", "r"}));
}

HR_TEST(row_chain_gives_the_bits_of_its_ops_one_by_one) {
  Weights weights;
  Batch batch = make_batch({{1, 3, kWidth}, {4, 131, kWidth}, {1, 0, kWidth}, {2, 77, kWidth}});
  for (const char* precision : {"fp32", "bf16", "int8"}) {
    Plan alone(make_program(weights, precision), 1);
    for (int threads : {1, 2, 5}) {
      Plan plan(make_program(weights, precision), threads);
      Run together = plan.run(batch.requests);
      for (size_t r = 0; r < batch.requests.size(); ++r) {
        std::vector<StepTime> profile;  // asks for one op at a time
        Run steps = alone.run({&batch.requests[r], 1}, &profile);
        HR_CHECK_EQ(profile.size(), size_t{4});
        for (size_t o = 0; o < 2; ++o) {
          HR_CHECK(same_bits(together.output(r, o), steps.output(0, o)));
        }
      }
    }
  }
}

HR_TEST(row_chain_takes_nothing_from_the_heap) {
  Weights weights;
  Plan plan(make_program(weights, "fp32"), 2);
  Batch batch = make_batch({{8, 300, kWidth}, {1, 5, kWidth}});
  for (int round = 0; round < 4; ++round) plan.run(batch.requests);
  int64_t before = test::heap_allocations();
  for (int round = 0; round < 10; ++round) plan.run(batch.requests);
  HR_CHECK_EQ(test::heap_allocations() - before, 0);
}

}  // namespace
}  // namespace headrace
