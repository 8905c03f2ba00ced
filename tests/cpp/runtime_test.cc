#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "heap.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

constexpr int64_t kFeatures = 48;

struct Weights {
  std::vector<float> w1, b1, w2;
};

Weights make_weights() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  Weights weights;
  weights.w1.resize(kFeatures * kFeatures);
  weights.b1.resize(kFeatures);
  weights.w2.resize(kFeatures * kFeatures);
  for (auto* values : {&weights.w1, &weights.b1, &weights.w2}) {
    for (float& value : *values) value = normal(random);
  }
  return weights;
}

NodeSpec node(std::string op, std::string name) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = std::move(name);
  spec.opset = 20;
  spec.output_dtypes = {DType::kF32};
  return spec;
}

// x[rows, 48] -> Linear+relu -> Linear+residual -> Add: aliases, overwrites and two live values.
Program make_program(const Weights& weights, Isa isa) {
  ProgramBuilder builder(isa);
  ValueId x = builder.add_input({"x", DType::kF32, {{-1, "rows"}, {kFeatures, ""}}});
  auto constant = [&](const char* name, const std::vector<float>& data, Shape shape) {
    return builder.add_constant(name, {DType::kF32, shape, data.data()}, nullptr);
  };
  ValueId w1 = constant("w1", weights.w1, {kFeatures, kFeatures});
  ValueId b1 = constant("b1", weights.b1, {kFeatures});
  ValueId w2 = constant("w2", weights.w2, {kFeatures, kFeatures});
  NodeSpec first = node("headrace.Linear", "first");
  first.attributes["activation"] = std::string("relu");
  ValueId hidden = builder.add_op(std::move(first), {x, w1, b1}, {"hidden"})[0];
  ValueId same = builder.add_op(node("Identity", "same"), {hidden}, {"same"})[0];
  ValueId out =
      builder.add_op(node("headrace.Linear", "second"), {same, w2, kAbsent, x}, {"out"})[0];
  ValueId sum = builder.add_op(node("Add", "sum"), {out, same}, {"sum"})[0];
  builder.add_output({"y", DType::kF32, {{-1, "rows"}, {kFeatures, ""}}}, sum);
  return builder.finish();
}

struct Batch {
  std::vector<std::vector<float>> data;
  std::vector<ConstTensorView> views;
  std::vector<RequestInputs> requests;
};

Batch make_batch(const std::vector<int64_t>& rows, uint32_t seed) {
  Batch batch;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::mt19937 random(seed + static_cast<uint32_t>(rows[r]));
    std::normal_distribution<float> normal;
    auto& values = batch.data.emplace_back(static_cast<size_t>(rows[r] * kFeatures));
    for (float& value : values) value = normal(random);
  }
  for (size_t r = 0; r < rows.size(); ++r) {
    batch.views.push_back({DType::kF32, {rows[r], kFeatures}, batch.data[r].data()});
  }
  for (const ConstTensorView& view : batch.views) batch.requests.push_back({&view, 1});
  return batch;
}

std::vector<float> copy_of(const ConstTensorView& tensor) {
  return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

HR_TEST(plan_gives_a_request_the_same_bits_alone_and_in_any_batch) {
  Weights weights = make_weights();
  for (Isa isa : available_isas()) {
    for (int threads : {1, 2, 4}) {
      Plan plan(make_program(weights, isa), threads);
      std::vector<int64_t> rows{3, 1, 17, 0, 64, 2, 33};
      Batch batch = make_batch(rows, 11);
      Run together = plan.run(batch.requests);
      for (size_t r = 0; r < rows.size(); ++r) {
        Run alone = plan.run({&batch.requests[r], 1});
        HR_CHECK_EQ(to_string(together.output(r, 0).shape), str("[", rows[r], ", 48]"));
        HR_CHECK(same_bits(copy_of(together.output(r, 0)), copy_of(alone.output(0, 0))));
      }
    }
  }
}

HR_TEST(plan_takes_nothing_from_the_heap_in_the_steady_state) {
  Weights weights = make_weights();
  Plan plan(make_program(weights, selected_isa()), 2);
  std::vector<Batch> batches;
  for (uint32_t i = 0; i < 4; ++i) batches.push_back(make_batch({5, 40, 1, 12 + i}, i));
  for (int round = 0; round < 3; ++round) {
    for (Batch& batch : batches) plan.run(batch.requests);
  }
  int64_t before = test::heap_allocations();
  for (int round = 0; round < 10; ++round) {
    for (Batch& batch : batches) plan.run(batch.requests);
  }
  HR_CHECK_EQ(test::heap_allocations() - before, 0);
}

HR_TEST(plan_lets_a_large_output_of_a_lone_request_outlive_its_run) {
  Weights weights = make_weights();
  Plan plan(make_program(weights, selected_isa()), 2);
  Batch batch = make_batch({1000, 2, 700}, 5);
  ConstTensorView kept;
  std::vector<float> expected;
  Block block;
  {
    Run run = plan.run({&batch.requests[0], 1});
    kept = run.output(0, 0);
    expected = copy_of(kept);
    block = run.take_output(0);
    HR_CHECK(block.data() == kept.data);
    HR_CHECK(!run.take_output(0));
  }
  Run other = plan.run({&batch.requests[2], 1});
  HR_CHECK(other.output(0, 0).data != kept.data);
  HR_CHECK(same_bits(copy_of(kept), expected));
  // A small one is not worth it, and those of a Batch share their memory.
  HR_CHECK(!plan.run({&batch.requests[1], 1}).take_output(0));
  HR_CHECK(!plan.run(batch.requests).take_output(0));
}

HR_TEST(plan_serves_several_threads_at_once) {
  Weights weights = make_weights();
  Plan plan(make_program(weights, selected_isa()), 2);
  Batch batch = make_batch({9, 30}, 5);
  std::vector<float> expected = copy_of(plan.run(batch.requests).output(1, 0));
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        HR_CHECK(same_bits(copy_of(plan.run(batch.requests).output(1, 0)), expected));
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

HR_TEST(plan_survives_a_batch_that_fails) {
  ProgramBuilder builder(selected_isa());
  ValueId a = builder.add_input({"a", DType::kF32, {{-1, "n"}}});
  ValueId b = builder.add_input({"b", DType::kF32, {{-1, "m"}}});
  ValueId sum = builder.add_op(node("Add", "sum"), {a, b}, {"sum"})[0];
  builder.add_output({"y", DType::kF32, {{-1, "n"}}}, sum);
  Plan plan(builder.finish(), 2);
  float data[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  auto run = [&](int64_t n, int64_t m) {
    ConstTensorView views[2] = {{DType::kF32, {n}, data}, {DType::kF32, {m}, data}};
    RequestInputs request(views);
    return copy_of(plan.run({&request, 1}).output(0, 0));
  };
  try {
    run(3, 4);
    HR_CHECK(false);
  } catch (const Error& error) {
    HR_CHECK(error.kind() == ErrorKind::kShapeMismatch);
    HR_CHECK(std::string(error.what()).find("node 'sum'") != std::string::npos);
  }
  std::vector<float> after = run(4, 4);
  HR_CHECK_EQ(after[3], 8.0f);
}

HR_TEST(program_drops_constants_that_kernels_have_packed) {
  Weights weights = make_weights();
  Program program = make_program(weights, selected_isa());
  for (const Value& value : program.values) {
    if (value.name == "w1") HR_CHECK(!value.data.present());
  }
  HR_CHECK(program.packed_bytes >= static_cast<int64_t>(2 * kFeatures * kFeatures * sizeof(float)));
}

HR_TEST(signature_says_what_was_got_and_expected) {
  Signature signature({{"a", DType::kF32, {{-1, "n"}, {4, ""}}}, {"b", DType::kI64, {{-1, "n"}}}},
                      {});
  float a[8] = {};
  int64_t b[3] = {};
  auto message = [&](ConstTensorView first, ConstTensorView second) -> std::string {
    ConstTensorView views[2] = {first, second};
    try {
      signature.check(views);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  HR_CHECK_EQ(message({DType::kF32, {2, 4}, a}, {DType::kI64, {2}, b}), "");
  HR_CHECK_EQ(message({DType::kF32, {2, 3}, a}, {DType::kI64, {2}, b}),
              "input 'a': got shape [2, 3], expected a: float32[n, 4]");
  HR_CHECK_EQ(message({DType::kF32, {2, 4}, a}, {DType::kI64, {3}, b}),
              "input 'b': got shape [3], where dim 'n' is 3, expected 2 as in input 'a'");
  HR_CHECK_EQ(message({DType::kF64, {2, 4}, a}, {DType::kI64, {2}, b}),
              "input 'a': got dtype float64, expected float32");
  HR_CHECK_EQ(message({DType::kF32, {2, 4}, a}, {}), "input 'b': got none, expected b: int64[n]");
}

}  // namespace
}  // namespace headrace
