// Element-wise ops taken some elements at a time give the bits that the same ops give one by one.
#include <random>
#include <string>
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

constexpr int64_t kWidth = 96;

NodeSpec node(const std::string& op, DType output = DType::kF32) {
  NodeSpec spec;
  spec.op = op;
  spec.name = op;
  spec.opset = 20;
  spec.output_dtypes = {output};
  return spec;
}

TensorSpec rows(const char* name, int64_t width = kWidth) {
  return {name, DType::kF32, {{-1, "n"}, {width, ""}}};
}

struct Constants {
  std::vector<float> row = random_floats(kWidth, 1), low = {-0.2f}, half = {0.5f};
};

struct Builder : ProgramBuilder {
  Builder() : ProgramBuilder(selected_isa()) {}
  ValueId constant(const std::vector<float>& data, Shape shape) {
    return add_constant("c", {DType::kF32, shape, data.data()}, nullptr);
  }
  ValueId add(NodeSpec spec, const std::vector<ValueId>& inputs) {
    return add_op(std::move(spec), inputs, {"v"})[0];
  }
};

// Every Request in a Batch with the others, and alone with its ops one by one.
void check_same_bits(auto make_program, const Batch& batch) {
  constexpr size_t outputs = 2;
  Plan alone(make_program(), 1);
  for (int threads : {1, 2, 5}) {
    Plan plan(make_program(), threads);
    Run together = plan.run(batch.requests);
    for (size_t r = 0; r < batch.requests.size(); ++r) {
      std::vector<StepTime> profile;  // asks for one op at a time
      Run steps = alone.run({&batch.requests[r], 1}, &profile);
      for (size_t o = 0; o < outputs; ++o) {
        HR_CHECK(same_bits(together.output(r, o), steps.output(0, o)));
      }
    }
  }
}

// With a row and numbers for all, another dtype within, a value that is read much later (b), and
// one that is a result and is read on (t).
Program make_program(const Constants& constants) {
  Builder builder;
  ValueId x = builder.add_input(rows("x"));
  ValueId row = builder.constant(constants.row, {1, kWidth});
  ValueId low = builder.constant(constants.low, {});
  ValueId half = builder.constant(constants.half, {1, 1, 1});
  ValueId a = builder.add(node("Sub"), {low, x});
  ValueId b = builder.add(node("Add"), {a, row});
  ValueId t = builder.add(node("Tanh"), {b});
  ValueId less = builder.add(node("Less", DType::kBool), {t, x});
  ValueId w = builder.add(node("Where"), {less, t, half});
  ValueId c = builder.add(node("Clip"), {w, low});
  ValueId h = builder.add(node("Cast", DType::kBF16), {c});
  ValueId f = builder.add(node("Cast"), {h});
  ValueId y = builder.add(node("Max"), {f, b, x});
  builder.add_output(rows("t"), t);
  builder.add_output(rows("y"), y);
  return builder.finish();
}

HR_TEST(element_chain_is_as_long_as_its_ops_are_element_wise) {
  Constants constants;
  Program program = make_program(constants);
  HR_CHECK_EQ(program.steps.size(), size_t{9});
  for (int s = 0; s < 9; ++s) HR_CHECK_EQ(program.steps[static_cast<size_t>(s)].elements, 9 - s);
  Builder builder;
  ValueId x = builder.add_input(rows("x"));
  ValueId of_constants = builder.add(node("Neg"), {builder.constant(constants.row, {kWidth})});
  ValueId softmax = builder.add(node("Softmax"), {builder.add(node("Add"), {x, of_constants})});
  builder.add_output(rows("y"), builder.add(node("Relu"), {softmax}));
  Program broken = builder.finish();
  std::vector<int> lengths;
  for (const Step& step : broken.steps) lengths.push_back(step.elements);
  HR_CHECK(lengths == std::vector<int>({0, 1, 0, 1}));
}

HR_TEST(element_chain_gives_the_bits_of_its_ops_one_by_one) {
  Constants constants;
  auto make = [&] { return make_program(constants); };
  check_same_bits(make, make_batch({{400, kWidth}, {1, kWidth}, {0, kWidth}, {533, kWidth}}));
  check_same_bits(make, make_batch({{1001, kWidth}}));
  check_same_bits(make, make_batch({{3, kWidth}, {2, kWidth}}));      // too few for a chain
  check_same_bits(make, make_batch({{22000, kWidth}, {7, kWidth}}));  // stored past the caches
}

// As many elements in rows of another width, which no part of the chain may be cut into.
HR_TEST(element_chain_ends_where_rows_have_another_width) {
  Constants constants;
  std::vector<int64_t> narrow = {-1, kWidth / 2};
  auto make = [&] {
    Builder builder;
    ValueId x = builder.add_input(rows("x"));
    ValueId shape = builder.add_constant("c", {DType::kI64, {2}, narrow.data()}, nullptr);
    ValueId halves = builder.add(node("Reshape"), {x, shape});
    ValueId a = builder.add(node("Add"), {x, builder.constant(constants.row, {kWidth})});
    ValueId b = builder.add(node("Mul"), {halves, builder.constant(constants.row, {kWidth / 2})});
    builder.add_output(rows("y"), builder.add(node("Neg"), {a}));
    builder.add_output(rows("z", kWidth / 2), builder.add(node("Neg"), {b}));
    return builder.finish();
  };
  check_same_bits(make, make_batch({{1001, kWidth}, {37, kWidth}}));
}

// Requests whose values have other widths, columns, rows of several widths, numbers.
HR_TEST(element_chain_gives_the_bits_of_random_ops_one_by_one) {
  Constants constants;
  const Batch batch = make_batch({{211, 331}, {400, kWidth}, {77, 1}, {1, kWidth}});
  const Batch wide = make_batch({{700, kWidth}, {35, kWidth}});
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const bool has_rows = seed % 2 == 0;
    auto make = [&] {
      std::mt19937 random(seed);
      auto pick = [&](size_t n) { return static_cast<size_t>(random() % n); };
      Builder builder;
      ValueId x = builder.add_input(rows("x", has_rows ? kWidth : -1));
      std::vector<ValueId> values = {x, builder.constant(constants.low, {1}),
                                     builder.constant(constants.half, {1, 1})};
      if (has_rows) values.push_back(builder.constant(constants.row, {kWidth}));
      NodeSpec mean = node("ReduceMax");  // a column
      mean.opset = 13;
      mean.attributes["axes"] = std::vector<int64_t>{-1};
      if (seed % 4 < 2) values.push_back(builder.add(std::move(mean), {x}));
      std::vector<ValueId> made;
      for (int i = 0; i < 12; ++i) {
        const char* ops[] = {"Add", "Mul", "Sub", "Max", "Min", "Relu", "Tanh", "Neg", "Clip"};
        size_t op = pick(9);
        std::vector<ValueId> inputs = {values[pick(values.size())], values[pick(values.size())]};
        if (op >= 5) inputs.resize(1);
        if (op == 8) inputs.push_back(values[1]);
        values.push_back(builder.add(node(ops[op]), inputs));
        made.push_back(values.back());
      }
      TensorSpec any{"y", DType::kF32, {{-1, ""}, {-1, ""}}};
      ValueId last = builder.add(node("Add"), {x, made.back()});
      builder.add_output(any, last);
      builder.add_output(any, builder.add(node("Mul"), {x, made[pick(made.size())]}));
      return builder.finish();
    };
    check_same_bits(make, has_rows ? wide : batch);
  }
}

HR_TEST(element_chain_takes_nothing_from_the_heap) {
  Constants constants;
  Plan plan(make_program(constants), 2);
  Batch batch = make_batch({{900, kWidth}, {5, kWidth}});
  for (int round = 0; round < 4; ++round) plan.run(batch.requests);
  int64_t before = test::heap_allocations();
  for (int round = 0; round < 10; ++round) plan.run(batch.requests);
  HR_CHECK_EQ(test::heap_allocations() - before, 0);
}

}  // namespace
}  // namespace headrace
