// Convolutions taken some images at a time give the bits that the same ops give one by one.
#include <algorithm>
#include <cmath>
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

constexpr int64_t kFew = 4;
constexpr int64_t kMany = 48;

struct Weights {
  std::vector<float> up = random_floats(kMany * kFew, 1), depthwise = random_floats(kMany * 9, 2),
                     down = random_floats(kFew * kMany, 3);
};

NodeSpec conv(int64_t groups, DType inner, DType y) {
  NodeSpec spec;
  spec.op = "headrace.FusedConv";
  spec.opset = 1;
  spec.output_dtypes = {y};
  spec.attributes = {{"layout", std::string("nhwc")}, {"group", groups}};
  if (inner == DType::kBF16) spec.attributes["precision"] = std::string("bf16");
  return spec;
}

TensorSpec maps(const char* name, int64_t channels) {
  return {name, DType::kF32, {{-1, "n"}, {-1, "h"}, {-1, "w"}, {channels, ""}}};
}

// As mobile networks have it: many channels between two of few, with a residual around them, and
// one among the many whose memory the sum may take over. What is pooled is a result too; the last
// step's maps are small.
Program make_program(const Weights& weights, DType inner) {
  ProgramBuilder builder(selected_isa());
  ValueId x = builder.add_input(maps("x", kFew));
  auto constant = [&](const char* name, const std::vector<float>& data, Shape shape) {
    return builder.add_constant(name, {DType::kF32, shape, data.data()}, nullptr);
  };
  ValueId up = constant("up", weights.up, {kMany, kFew, 1, 1});
  ValueId depthwise = constant("depthwise", weights.depthwise, {kMany, 1, 3, 3});
  ValueId down = constant("down", weights.down, {kFew, kMany, 1, 1});
  ValueId a = builder.add_op(conv(1, inner, inner), {x, up}, {"a"})[0];
  NodeSpec middle = conv(kMany, inner, inner);
  middle.attributes["pads"] = std::vector<int64_t>{1, 1, 1, 1};
  ValueId b = builder.add_op(std::move(middle), {a, depthwise}, {"b"})[0];
  ValueId sum = builder.add_op(conv(1, inner, inner), {x, up, kAbsent, b}, {"sum"})[0];
  ValueId c = builder.add_op(conv(1, inner, DType::kF32), {sum, down, kAbsent, x}, {"c"})[0];
  NodeSpec pool;
  pool.op = "headrace.MaxPool";
  pool.opset = 1;
  pool.output_dtypes = {DType::kF32};
  pool.attributes = {{"layout", std::string("nhwc")},
                     {"kernel_shape", std::vector<int64_t>{2, 2}},
                     {"strides", std::vector<int64_t>{2, 2}}};
  ValueId y = builder.add_op(std::move(pool), {c}, {"y"})[0];
  builder.add_output(maps("c", kFew), c);
  builder.add_output(maps("y", kFew), y);
  return builder.finish();
}

HR_TEST(image_chain_is_as_long_as_its_ops_keep_images_apart) {
  Weights weights;
  Program program = make_program(weights, DType::kF32);
  for (int s = 0; s < 5; ++s) HR_CHECK_EQ(program.steps[static_cast<size_t>(s)].images, 5 - s);
}

HR_TEST(image_chain_gives_the_bits_of_its_ops_one_by_one) {
  Weights weights;
  // Six images, some 8 MB of the widest maps, two or three of which are taken at a time; then a
  // Request without any, and images too small to be chained.
  const std::vector<std::vector<Shape>> batches = {
      {{3, 80, 90, kFew}, {1, 61, 50, kFew}, {2, 90, 80, kFew}},
      {{4, 90, 90, kFew}, {0, 90, 90, kFew}},
      {{2, 9, 9, kFew}}};
  for (DType inner : {DType::kF32, DType::kBF16}) {
    Plan alone(make_program(weights, inner), 1);
    for (const std::vector<Shape>& shapes : batches) {
      Batch batch = make_batch(shapes);
      for (int threads : {1, 2, 3}) {
        Plan plan(make_program(weights, inner), threads);
        Run together = plan.run(batch.requests);
        for (size_t r = 0; r < batch.requests.size(); ++r) {
          std::vector<StepTime> profile;  // asks for one op at a time
          Run steps = alone.run({&batch.requests[r], 1}, &profile);
          HR_CHECK_EQ(profile.size(), size_t{5});
          for (size_t o = 0; o < 2; ++o) {
            HR_CHECK(same_bits(together.output(r, o), steps.output(0, o)));
          }
        }
      }
    }
  }
}

HR_TEST(image_chain_leaves_out_sums_with_constant_images) {
  const Shape shape = {3, 80, 90, kFew};
  Weights weights;
  std::vector<float> given = random_floats(shape.elements(), 5);
  auto make = [&](bool added) {
    ProgramBuilder builder(selected_isa());
    ValueId x = builder.add_input(maps("x", kFew));
    auto constant = [&](const char* name, const std::vector<float>& data, Shape dims) {
      return builder.add_constant(name, {DType::kF32, dims, data.data()}, nullptr);
    };
    ValueId up = constant("up", weights.up, {kMany, kFew, 1, 1});
    ValueId down = constant("down", weights.down, {kFew, kMany, 1, 1});
    ValueId a = builder.add_op(conv(1, DType::kF32, DType::kF32), {x, up}, {"a"})[0];
    std::vector<ValueId> inputs = {a, down};
    if (added) inputs.insert(inputs.end(), {kAbsent, constant("given", given, shape)});
    ValueId y = builder.add_op(conv(1, DType::kF32, DType::kF32), inputs, {"y"})[0];
    builder.add_output(maps("y", kFew), y);
    return builder.finish();
  };
  Batch batch = make_batch({shape, shape});
  Plan plan(make(true), 2), plain(make(false), 2);
  Run sums = plan.run(batch.requests), products = plain.run(batch.requests);
  for (size_t r = 0; r < 2; ++r) {
    const float* got = sums.output(r, 0).as<float>();
    const float* product = products.output(r, 0).as<float>();
    float off = 0.0f;
    for (size_t i = 0; i < given.size(); ++i) {
      off = std::max(off, std::abs(got[i] - (product[i] + given[i])));
    }
    HR_CHECK(off <= 1e-5f);
  }
}

HR_TEST(image_chain_takes_nothing_from_the_heap) {
  Weights weights;
  Plan plan(make_program(weights, DType::kF32), 2);
  Batch batch = make_batch({{4, 90, 90, kFew}, {2, 20, 30, kFew}});
  // Each thread has to have met every part once, and which it meets is chance.
  int64_t taken = 1;
  for (int attempt = 0; attempt < 20 && taken != 0; ++attempt) {
    int64_t before = test::heap_allocations();
    for (int round = 0; round < 6; ++round) plan.run(batch.requests);
    taken = test::heap_allocations() - before;
  }
  HR_CHECK_EQ(taken, 0);
}

}  // namespace
}  // namespace headrace
