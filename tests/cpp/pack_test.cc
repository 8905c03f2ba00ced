#include "ops/pack.h"

#include <cstring>
#include <optional>
#include <vector>

#include "check.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

// The message of the Error(kInvalidPlan) that `run` throws.
template <class Run>
std::string refusal(Run run) {
  try {
    run();
  } catch (const Error& error) {
    return error.kind() == ErrorKind::kInvalidPlan ? error.what() : str("another: ", error.what());
  }
  return "nothing was thrown";
}

Packed filled(int64_t bytes, int value) {
  return {bytes, [&](std::byte* to) { std::memset(to, value, static_cast<size_t>(bytes)); }};
}

bool starts_with(const std::string& text, std::string_view start) {
  return text.compare(0, start.size(), start) == 0;
}

HR_TEST(packs_keep_what_an_op_fills_in_aligned_memory) {
  Packs packs;
  for (int64_t bytes : {12, 0, 200}) {
    Packed packed = packs.pack(bytes, [&](std::byte* to) { std::memset(to, 5, bytes); });
    HR_CHECK_EQ(reinterpret_cast<uintptr_t>(packed.data()) % kPackAlignment, 0u);
  }
  std::vector<Packed> all = packs.finish();
  HR_CHECK_EQ(all.size(), 3u);
  HR_CHECK_EQ(all[2].bytes(), 200);
  HR_CHECK_EQ(static_cast<int>(all[2].data()[199]), 5);
}

HR_TEST(packed_blocks_of_a_large_plan_lie_together_and_outlive_its_builder) {
  constexpr int64_t kLarge = int64_t{3} << 20;
  std::vector<Packed> all;
  {
    PackMemory memory;
    Packs packs(&memory);
    for (int64_t bytes : {kLarge, int64_t{100}, 14 * kLarge}) {
      packs.pack(bytes, [&](std::byte* to) { std::memset(to, 7, static_cast<size_t>(bytes)); });
    }
    all = packs.finish();
  }
  HR_CHECK_EQ(all[1].data(), all[0].data() + kLarge);
  Packed last = all[1];
  all.clear();
  HR_CHECK_EQ(reinterpret_cast<uintptr_t>(last.data()) % kPackAlignment, 0u);
  HR_CHECK_EQ(static_cast<int>(last.data()[99]), 7);
}

HR_TEST(packs_hand_saved_memory_out_in_order_and_fill_none_of_it) {
  Packed first = filled(64, 1);
  Packed second = filled(16, 2);
  Packs packs({first, second}, "op");
  auto never = [](std::byte*) { HR_CHECK(false); };
  HR_CHECK_EQ(packs.pack(64, never).data(), first.data());
  HR_CHECK_EQ(packs.pack(16, never).data(), second.data());
  HR_CHECK_EQ(packs.finish().size(), 2u);
}

HR_TEST(packs_refuse_saved_memory_that_is_not_what_the_op_packs) {
  auto never = [](std::byte*) { HR_CHECK(false); };
  HR_CHECK_EQ(refusal([&] { Packs({filled(64, 1)}, "op").pack(65, never); }),
              "op: got 64 bytes in packed block 0, expected 65");
  HR_CHECK_EQ(refusal([&] { Packs({}, "op").pack(1, never); }),
              "op: got 0 packed blocks, expected more");
  HR_CHECK_EQ(refusal([&] { Packs({filled(64, 1)}, "op").finish(); }),
              "op: got 1 packed blocks, expected 0");
}

NodeSpec linear() {
  NodeSpec node;
  node.op = "headrace.Linear";
  node.name = "linear";
  node.output_dtypes = {DType::kF32};
  return node;
}

struct Weights {
  std::vector<float> w{1, 2, 3, 4, 5, 6};
  std::vector<float> b{0.5f, -0.5f};
};

// y[rows, 2] = x[rows, 3] * w + b. Without `weights` they must all be packed already.
Program linear_program(const Weights* weights, std::optional<std::vector<Packed>> saved) {
  ProgramBuilder builder(Isa::kReference);
  ValueId x = builder.add_input({"x", DType::kF32, {{-1, "rows"}, {3, ""}}});
  auto constant = [&](const char* name, Shape shape, const std::vector<float> Weights::* data) {
    const float* at = weights ? (weights->*data).data() : nullptr;
    return builder.add_constant(name, {DType::kF32, shape, at}, nullptr);
  };
  ValueId w = constant("w", {3, 2}, &Weights::w);
  ValueId b = constant("b", {2}, &Weights::b);
  ValueId y = builder.add_op(linear(), {x, w, b}, {"y"}, std::move(saved))[0];
  builder.add_output({"y", DType::kF32, {{-1, "rows"}, {2, ""}}}, y);
  return builder.finish();
}

std::vector<float> answer(Program program) {
  Plan plan(std::move(program), 1);
  const float x[] = {1, 10, 100};
  ConstTensorView view{DType::kF32, {1, 3}, x};
  RequestInputs request(&view, 1);
  Run run = plan.run({&request, 1});
  std::span<const float> y = run.output(0, 0).span<float>();
  return {y.begin(), y.end()};
}

HR_TEST(program_is_made_again_from_what_its_ops_packed_without_their_constants) {
  Weights weights;
  Program first = linear_program(&weights, std::nullopt);
  std::vector<Packed> packs = first.steps[0].packs;
  HR_CHECK_EQ(packs.size(), 2u);
  HR_CHECK_EQ(first.packed_bytes, packs[0].bytes() + packs[1].bytes());
  HR_CHECK_EQ(first.constant_bytes, 0);
  Program second = linear_program(nullptr, packs);
  HR_CHECK_EQ(second.packed_bytes, first.packed_bytes);
  HR_CHECK(second.steps[0].packs[0].data() == packs[0].data());
  std::vector<float> expected{531.5f, 641.5f};
  HR_CHECK(answer(std::move(first)) == expected);
  HR_CHECK(answer(std::move(second)) == expected);
}

HR_TEST(program_refuses_a_saved_op_whose_constants_or_packs_are_missing) {
  Weights weights;
  std::vector<Packed> packs = linear_program(&weights, std::nullopt).steps[0].packs;
  HR_CHECK_EQ(refusal([&] { linear_program(nullptr, std::nullopt); }),
              "headrace.Linear (node 'linear'): constant 'w' is not in the saved Plan");
  HR_CHECK(starts_with(refusal([&] { linear_program(nullptr, std::vector{packs[0]}); }),
                       "headrace.Linear (node 'linear'): got 1 packed blocks"));
}

}  // namespace
}  // namespace headrace
