#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "core/half.h"
#include "op_harness.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec node(std::string op, std::vector<DType> inputs, DType output, Isa isa = Isa::kReference) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 20;
  spec.constants.resize(inputs.size());
  spec.input_dtypes = std::move(inputs);
  spec.output_dtypes = {output};
  spec.isa = isa;
  return spec;
}

Tensor random_floats(const Shape& shape, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of<float>(shape, values);
}

// The element of a tensor that numpy's broadcasting puts at `index` of `full`.
float broadcast_at(const Tensor& tensor, const Shape& full, int64_t index) {
  const auto* values = reinterpret_cast<const float*>(tensor.bytes.data());
  int64_t offset = 0, step = 1;
  for (int axis = full.rank() - 1, own = tensor.shape.rank() - 1; axis >= 0; --axis, --own) {
    int64_t at = index % full[axis];
    index /= full[axis];
    if (own < 0) continue;
    offset += (tensor.shape[own] == 1 ? 0 : at) * step;
    step *= tensor.shape[own];
  }
  return values[offset];
}

float expected(const std::string& op, float a, float b) {
  if (op == "Add") return a + b;
  if (op == "Sub") return a - b;
  if (op == "Mul") return a * b;
  if (op == "Div") return a / b;
  return op == "Max" ? std::max(a, b) : std::min(a, b);
}

// One way in which the two inputs of a Request may stand to each other.
struct Pattern {
  const char* name;
  Shape (*a)(int64_t rows);
  Shape (*b)(int64_t rows);
  bool constant_b;
};

constexpr int64_t kWidth = 37;  // no multiple of any vector
const Pattern kPatterns[] = {
    {"same", [](int64_t n) { return Shape{2, n, kWidth}; },
     [](int64_t n) { return Shape{2, n, kWidth}; }, false},
    {"row", [](int64_t n) { return Shape{2, n, kWidth}; }, [](int64_t) { return Shape{kWidth}; },
     true},
    {"row per request", [](int64_t n) { return Shape{2, n, kWidth}; },
     [](int64_t) { return Shape{1, kWidth}; }, false},
    {"column", [](int64_t n) { return Shape{2, n, kWidth}; },
     [](int64_t n) { return Shape{2, n, 1}; }, false},
    {"scalar", [](int64_t n) { return Shape{2, n, kWidth}; }, [](int64_t) { return Shape{}; },
     true},
    {"scalar first", [](int64_t) { return Shape{1}; },
     [](int64_t n) { return Shape{2, n, kWidth}; }, false},
    {"outer", [](int64_t n) { return Shape{2, n, 1}; }, [](int64_t) { return Shape{1, 1, kWidth}; },
     true},
    {"middle", [](int64_t n) { return Shape{2, n, kWidth}; },
     [](int64_t) { return Shape{2, 1, kWidth}; }, true},
};

Plan plan_of(const std::string& op, const Pattern& pattern, const Tensor& b, Isa isa, int threads) {
  ProgramBuilder builder(isa);
  ValueId a_id = builder.add_input({"a", DType::kF32, {}});
  ValueId b_id = pattern.constant_b ? builder.add_constant("b", b.view(), nullptr)
                                    : builder.add_input({"b", DType::kF32, {}});
  NodeSpec spec;
  spec.op = op;
  spec.opset = 20;
  spec.output_dtypes = {DType::kF32};
  builder.add_output({"y", DType::kF32, {}}, builder.add_op(spec, {a_id, b_id}, {"y"})[0]);
  return Plan(builder.finish(), threads);
}

void check_pattern(const std::string& op, const Pattern& pattern, Isa isa) {
  const int64_t rows[] = {3, 1, 0, 600, 8};
  Tensor constant = random_floats(pattern.b(1), 99);
  std::vector<Tensors> requests;
  for (int64_t n : rows) {
    Tensor a = random_floats(pattern.a(n), static_cast<unsigned>(n));
    requests.push_back({a, pattern.constant_b
                               ? constant
                               : random_floats(pattern.b(n), static_cast<unsigned>(n + 50))});
  }
  std::vector<std::vector<ConstTensorView>> views;
  for (const Tensors& request : requests) {
    views.push_back({request[0].view()});
    if (!pattern.constant_b) views.back().push_back(request[1].view());
  }
  std::vector<RequestInputs> inputs(views.begin(), views.end());
  for (int threads : {1, 3}) {
    Plan plan = plan_of(op, pattern, constant, isa, threads);
    Run together = plan.run(inputs);
    for (size_t r = 0; r < requests.size(); ++r) {
      ConstTensorView got = together.output(r, 0);
      Run alone = plan.run({&inputs[r], 1});
      HR_CHECK(got.shape == alone.output(0, 0).shape);
      int wrong = 0, varies = 0;
      for (int64_t i = 0; i < got.elements(); ++i) {
        float want = expected(op, broadcast_at(requests[r][0], got.shape, i),
                              broadcast_at(requests[r][1], got.shape, i));
        wrong += got.as<float>()[i] != want;
        varies += got.as<float>()[i] != alone.output(0, 0).as<float>()[i];
      }
      if (wrong + varies > 0) {
        test::report(__FILE__, __LINE__, op, " ", pattern.name, " request ", r, ": ", wrong,
                     " wrong, ", varies, " other than alone");
      }
    }
  }
}

HR_TEST(elementwise_broadcasts_every_request_as_if_alone) {
  for (Isa isa : available_isas()) {
    for (const Pattern& pattern : kPatterns) {
      for (const char* op : {"Add", "Sub", "Mul", "Div", "Max", "Min"}) {
        check_pattern(op, pattern, isa);
      }
    }
  }
}

HR_TEST(elementwise_refuses_shapes_that_do_not_broadcast) {
  auto op = OpRegistry::global().make(node("Add", {DType::kF32, DType::kF32}, DType::kF32));
  HR_CHECK_THROWS(
      test::run_one(*op, {DType::kF32}, {random_floats({2, 3}, 1), random_floats({2}, 2)}), Error);
  HR_CHECK_THROWS(OpRegistry::global().make(node("Add", {DType::kF32, DType::kI64}, DType::kF32)),
                  Error);
}

HR_TEST(floats_that_no_int32_holds_become_the_least_one) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  for (Isa isa : available_isas()) {
    auto op = OpRegistry::global().make(node("Cast", {DType::kF32}, DType::kI32, isa));
    Tensor x = Tensor::of<float>({6}, {nan, INFINITY, -INFINITY, 3e9F, -1.5F, 2147483520.0F});
    std::vector<int32_t> got = test::run_one(*op, {DType::kI32}, {x})[0].values<int32_t>();
    HR_CHECK(got == std::vector<int32_t>({kLeast, kLeast, kLeast, kLeast, -1, 2147483520}));
  }
}

HR_TEST(max_and_min_pass_nan_on_from_either_side) {
  float nan = std::numeric_limits<float>::quiet_NaN();
  for (Isa isa : available_isas()) {
    for (const char* name : {"Max", "Min"}) {
      auto op = OpRegistry::global().make(node(name, {DType::kF32, DType::kF32}, DType::kF32, isa));
      Tensors out = test::run_one(
          *op, {DType::kF32},
          {Tensor::of<float>({3}, {nan, 1, nan}), Tensor::of<float>({3}, {1, nan, nan})});
      for (float value : out[0].values<float>()) HR_CHECK(std::isnan(value));
    }
  }
}

HR_TEST(integer_division_never_traps) {
  auto op = OpRegistry::global().make(node("Div", {DType::kI32, DType::kI32}, DType::kI32));
  Tensors out = test::run_one(
      *op, {DType::kI32},
      {Tensor::of<int32_t>({4}, {7, -7, INT32_MIN, -7}), Tensor::of<int32_t>({4}, {0, 2, -1, -1})});
  HR_CHECK(out[0].values<int32_t>() == (std::vector<int32_t>{0, -3, INT32_MIN, 7}));
}

HR_TEST(half_rounds_to_nearest_even_and_keeps_every_value) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Half half;
    half.bits = static_cast<uint16_t>(bits);
    float value = half;
    if (std::isnan(value)) {
      HR_CHECK(std::isnan(static_cast<float>(Half(value))));
      continue;
    }
    HR_CHECK_EQ(Half(value).bits, half.bits);
    // Half way to the next value goes to the even one.
    Half next;
    next.bits = static_cast<uint16_t>(bits + 1);
    if (std::isinf(static_cast<float>(next)) || std::isinf(value)) continue;
    double middle =
        (static_cast<double>(value) + static_cast<double>(static_cast<float>(next))) / 2;
    uint16_t even = (bits & 1) == 0 ? half.bits : next.bits;
    HR_CHECK_EQ(Half(static_cast<float>(middle)).bits, even);
    // A double just off the middle, closer than a float can tell, must not round twice.
    double above = middle + (middle < 0 ? -1 : 1) * std::abs(middle) * 0x1p-50;
    if (middle != 0) HR_CHECK_EQ(Half(above).bits, next.bits);
  }
}

// Every value of a 16-bit float to float32 and back, and floats that must be rounded, as the scalar
// types do it.
template <class T>
void check_casts(Isa isa) {
  auto widen = OpRegistry::global().make(node("Cast", {kDTypeOf<T>}, DType::kF32, isa));
  auto narrow = OpRegistry::global().make(node("Cast", {DType::kF32}, kDTypeOf<T>, isa));
  std::vector<T> all(0x10000);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) all[bits].bits = static_cast<uint16_t>(bits);
  Tensor wide = test::run_one(*widen, {DType::kF32}, {Tensor::of<T>({0x10000}, all)})[0];
  std::vector<float> floats = wide.values<float>();
  int wrong = 0;
  auto same = [](float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
           (std::isnan(a) && std::isnan(b));
  };
  for (size_t i = 0; i < all.size(); ++i) wrong += !same(floats[i], static_cast<float>(all[i]));
  HR_CHECK_EQ(wrong, 0);
  std::mt19937 random(3);
  for (int i = 0; i < 20'001; ++i)
    floats.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  auto n = static_cast<int64_t>(floats.size());
  Tensor rounded = test::run_one(*narrow, {kDTypeOf<T>}, {Tensor::of<float>({n}, floats)}, 3)[0];
  std::vector<T> back = rounded.template values<T>();
  for (size_t i = 0; i < floats.size(); ++i) {
    wrong += !same(static_cast<float>(back[i]), static_cast<float>(T(floats[i])));
  }
  HR_CHECK_EQ(wrong, 0);
}

HR_TEST(casts_of_16_bit_floats_round_to_nearest_even_on_every_isa) {
  for (Isa isa : available_isas()) {
    check_casts<Half>(isa);
    check_casts<BFloat16>(isa);
  }
}

HR_TEST(casts_saturate_nothing_and_parse_strings) {
  auto to_int = OpRegistry::global().make(node("Cast", {DType::kF32}, DType::kI32));
  Tensors out =
      test::run_one(*to_int, {DType::kI32}, {Tensor::of<float>({3}, {-1.9f, 2.9f, 1e9f})});
  HR_CHECK(out[0].values<int32_t>() == (std::vector<int32_t>{-1, 2, 1000000000}));
  auto parse = OpRegistry::global().make(node("Cast", {DType::kString}, DType::kF32));
  auto text = [](const char* chars) {
    return StringRef{chars, static_cast<int64_t>(std::strlen(chars))};
  };
  Tensor numbers{DType::kString, {2}, std::vector<std::byte>(2 * sizeof(StringRef))};
  StringRef refs[2] = {text(" +1.5"), text("-inf")};
  std::memcpy(numbers.bytes.data(), refs, sizeof(refs));
  out = test::run_one(*parse, {DType::kF32}, {numbers});
  std::vector<float> parsed = out[0].values<float>();
  HR_CHECK_EQ(parsed[0], 1.5f);
  HR_CHECK(std::isinf(parsed[1]));
  refs[1] = text("1.5 apples");
  std::memcpy(numbers.bytes.data(), refs, sizeof(refs));
  HR_CHECK_THROWS(test::run_one(*parse, {DType::kF32}, {numbers}), Error);
}

}  // namespace
}  // namespace headrace
