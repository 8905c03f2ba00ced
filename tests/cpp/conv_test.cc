#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "conv_cases.h"
#include "core/cpu.h"

namespace headrace {
namespace {

using namespace test;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

HR_TEST(conv_agrees_with_double_precision) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      for (bool constant : {true, false}) {
        Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                      random_tensor({c.weight[0]}, 3)};
        std::vector<size_t> constants;
        if (constant) constants = {1, 2};
        auto op = make_op(isa, "Conv", in, constants, c.geometry.attributes(c.x.rank() - 2));
        check_near(run_one(*op, {DType::kF32}, in, 2)[0],
                   conv_in_double(in[0], in[1], in[2], c.geometry), 1e-4);
      }
    }
  }
}

HR_TEST(conv_bits_do_not_depend_on_the_batch_or_the_threads) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      std::vector<Tensors> requests;
      for (int64_t r = 0; r < 5; ++r) {
        Shape shape = c.x;
        shape[0] = 1;
        shape[2] += r;
        auto seed = static_cast<uint32_t>(r);
        requests.push_back({random_tensor(shape, seed), random_tensor(c.weight, 9)});
      }
      auto op = make_op(isa, "Conv", requests[0], {1}, c.geometry.attributes(c.x.rank() - 2));
      for (int threads : {1, 4}) {
        std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
        for (size_t r = 0; r < requests.size(); ++r) {
          Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
          HR_CHECK(alone.bytes == together[r][0].bytes);
        }
      }
    }
  }
}

HR_TEST(fused_conv_works_channels_last) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                    random_tensor({c.weight[0]}, 3)};
      std::vector<double> expected = conv_in_double(in[0], in[1], in[2], c.geometry);
      in[0] = turned(in[0], true);
      auto op = make_fused_conv(isa, in, c.geometry.attributes(c.x.rank() - 2));
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      check_near(turned(y, false), expected, 1e-4);
    }
  }
}

HR_TEST(fused_conv_bits_do_not_depend_on_the_batch_or_the_threads) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      std::vector<Tensors> requests;
      for (int64_t r = 0; r < 6; ++r) {
        Shape shape = c.x;
        shape[0] = 1 + r % 2;
        if (r > 2) shape[2] += r;  // the first three run as one
        requests.push_back({turned(random_tensor(shape, static_cast<uint32_t>(r)), true),
                            random_tensor(c.weight, 9)});
      }
      auto op = make_fused_conv(isa, requests[0], c.geometry.attributes(c.x.rank() - 2));
      for (int threads : {1, 4}) {
        std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
        for (size_t r = 0; r < requests.size(); ++r) {
          Tensor alone = run_one(*op, {DType::kF32}, requests[r])[0];
          HR_CHECK(alone.bytes == together[r][0].bytes);
        }
      }
    }
  }
}

HR_TEST(fused_conv_adds_the_residual_before_the_activation) {
  for (Isa isa : available_isas()) {
    for (int64_t groups : {1, 2, 6}) {
      for (bool residual : {true, false}) {
        Geometry g;
        g.groups = groups;
        Tensors in = {random_tensor({2, 6, 9, 8}, 1), random_tensor({6, 6 / groups, 3, 3}, 2),
                      random_tensor({6}, 3)};
        std::vector<double> expected = conv_in_double(in[0], in[1], in[2], g);
        in[0] = turned(in[0], true);
        if (residual) {
          Tensor added = random_tensor({2, 6, 7, 6}, 4);
          in.push_back(turned(added, true));
          std::vector<float> values = added.values<float>();
          for (size_t i = 0; i < expected.size(); ++i) expected[i] += values[i];
        }
        for (double& value : expected) value = std::min(1.5, std::max(-0.5, value));
        Attributes attributes = g.attributes(2);
        attributes["activation"] = std::string("clip");
        attributes["clip_min"] = -0.5;
        attributes["clip_max"] = 1.5;
        auto op = make_fused_conv(isa, in, attributes);
        check_near(turned(run_one(*op, {DType::kF32}, in)[0], false), expected, 2e-5);
      }
    }
  }
}

// One channel per group is no product of matrices; the compiler leaves those in fp32.
bool multiplies(const ConvCase& c) {
  return c.x[0] > 0 && c.weight[1] > 1;
}

std::unique_ptr<Op> make_low_conv(Isa isa, const Tensors& in, const ConvCase& c,
                                  const char* precision, DType y) {
  Attributes attributes = c.geometry.attributes(c.x.rank() - 2);
  attributes["layout"] = std::string("nhwc");
  attributes["precision"] = std::string(precision);
  return make_op(isa, "headrace.FusedConv", in, {1, 2}, attributes, {y});
}

HR_TEST(bf16_conv_is_the_convolution_of_rounded_operands) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (!multiplies(c)) continue;
      Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                    random_tensor({c.weight[0]}, 3)};
      std::vector<double> expected =
          conv_in_double(widened(rounded(in[0])), widened(rounded(in[1])), in[2], c.geometry);
      in[0] = turned(in[0], true);
      auto op = make_low_conv(isa, in, c, "bf16", DType::kF32);
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      check_near(turned(y, false), expected, 1e-4);
    }
  }
}

HR_TEST(low_precision_conv_reads_and_writes_bfloat16) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (!multiplies(c)) continue;
      for (const char* precision : {"bf16", "int8"}) {
        Tensors narrow = {rounded(turned(random_tensor(c.x, 1), true)), random_tensor(c.weight, 2),
                          random_tensor({c.weight[0]}, 3)};
        Tensors wide = {widened(narrow[0]), narrow[1], narrow[2]};
        auto from_wide = make_low_conv(isa, wide, c, precision, DType::kF32);
        Tensor expected = run_one(*from_wide, {DType::kF32}, wide)[0];
        auto from_narrow = make_low_conv(isa, narrow, c, precision, DType::kBF16);
        Tensor got = run_one(*from_narrow, {DType::kBF16}, narrow, 3)[0];
        HR_CHECK(got.bytes == rounded(expected).bytes);
      }
    }
  }
}

HR_TEST(low_precision_conv_adds_a_residual_of_bfloat16) {
  for (Isa isa : available_isas()) {
    for (int64_t outputs : {40, 64}) {
      ConvCase c{{2, 32, 6, 7}, {outputs, 32, 1, 1}, Geometry{}};
      Tensors narrow = {turned(random_tensor(c.x, 1), true), random_tensor(c.weight, 2),
                        random_tensor({outputs}, 3), rounded(random_tensor({2, 6, 7, outputs}, 4))};
      Tensors wide = {narrow[0], narrow[1], narrow[2], widened(narrow[3])};
      for (DType y : {DType::kF32, DType::kBF16}) {
        Tensor expected = run_one(*make_low_conv(isa, wide, c, "bf16", y), {y}, wide)[0];
        Tensor got = run_one(*make_low_conv(isa, narrow, c, "bf16", y), {y}, narrow)[0];
        HR_CHECK(got.bytes == expected.bytes);
      }
    }
  }
}

HR_TEST(int8_conv_is_close_and_its_bits_do_not_depend_on_isa_or_batch) {
  for (const ConvCase& c : conv_cases()) {
    if (!multiplies(c)) continue;
    Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                  random_tensor({c.weight[0]}, 3)};
    std::vector<double> expected = conv_in_double(in[0], in[1], in[2], c.geometry);
    in[0] = turned(in[0], true);
    // Each operand is off by up to half of 1/127 of its largest value, some 4 here.
    double k = static_cast<double>(c.weight.elements(1, c.weight.rank()));
    std::vector<std::byte> first;
    for (Isa isa : available_isas()) {
      auto op = make_low_conv(isa, in, c, "int8", DType::kF32);
      Tensor y = run_one(*op, {DType::kF32}, in, 2)[0];
      std::vector<float> got = turned(y, false).values<float>();
      for (size_t i = 0; i < got.size(); ++i) {
        HR_CHECK(std::abs(got[i] - expected[i]) < 0.15 * std::sqrt(k));
      }
      if (first.empty()) first = y.bytes;
      HR_CHECK(y.bytes == first);
      Tensor other = turned(random_tensor(c.x, 7), true);
      std::vector<Tensors> together =
          run_op(*op, {DType::kF32}, {{other, in[1], in[2]}, in, {other, in[1], in[2]}}, 4);
      HR_CHECK(together[1][0].bytes == first);
    }
  }
}

HR_TEST(conv_pads_as_auto_pad_says) {
  auto shape_of = [](const std::string& auto_pad, int64_t length) {
    Tensors in = {random_tensor({1, 1, length}, 1), random_tensor({1, 1, 3}, 2)};
    auto op =
        make_op(Isa::kReference, "Conv", in, {}, {{"auto_pad", auto_pad}, {"strides", Ints{2}}});
    return run_one(*op, {DType::kF32}, in)[0].values<float>();
  };
  // Length 4, kernel 3, stride 2: one pad, behind for UPPER and before for LOWER.
  Tensors in = {random_tensor({1, 1, 4}, 1), random_tensor({1, 1, 3}, 2)};
  Geometry upper, lower;
  upper.stride[2] = lower.stride[2] = 2;
  upper.end[2] = lower.begin[2] = 1;
  auto close = [&](const std::vector<float>& got, const Geometry& g) {
    std::vector<double> expected = conv_in_double(in[0], in[1], Tensor{}, g);
    HR_CHECK_EQ(got.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) HR_CHECK_NEAR(got[i], expected[i], 1e-6);
  };
  close(shape_of("SAME_UPPER", 4), upper);
  close(shape_of("SAME_LOWER", 4), lower);
  HR_CHECK_EQ(shape_of("VALID", 6).size(), 2u);
}

HR_TEST(conv_refuses_what_does_not_fit) {
  Tensors in = {random_tensor({1, 3, 8, 8}, 1), random_tensor({2, 4, 3, 3}, 2)};
  auto op = make_op(Isa::kReference, "Conv", in, {1}, {});
  HR_CHECK_THROWS(run_one(*op, {DType::kF32}, in), Error);
  Tensors doubles = {Tensor::of<double>({1, 1, 2}, {1, 2}), Tensor::of<double>({1, 1, 1}, {1})};
  HR_CHECK_THROWS(make_op(Isa::kReference, "Conv", doubles, {}, {}), Error);
}

// ConvTranspose is the transpose of Conv: <conv(y), x> = <y, conv_transpose(x)> for all x and y.
HR_TEST(conv_transpose_is_the_transpose_of_conv) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : conv_cases()) {
      if (c.x[0] == 0) continue;
      Tensor y = random_tensor(c.x, 1), weight = random_tensor(c.weight, 2);
      Attributes attributes = c.geometry.attributes(c.x.rank() - 2);
      auto conv = make_op(isa, "Conv", {y, weight}, {}, attributes);
      Tensor shape_like = run_one(*conv, {DType::kF32}, {y, weight})[0];
      Tensor x = random_tensor(shape_like.shape, 3);
      // Where the stride leaves a remainder, Y's end lies outside every window.
      Ints output_padding;
      int rank = c.x.rank() - 2;
      for (int i = 0; i < rank; ++i) {
        int axis = 3 - rank + i;
        const Geometry& g = c.geometry;
        int64_t room =
            c.x[2 + i] + g.begin[axis] + g.end[axis] - (c.weight[2 + i] - 1) * g.dilation[axis] - 1;
        output_padding.push_back(room % g.stride[axis]);
      }
      attributes["output_padding"] = output_padding;
      auto transpose = make_op(isa, "ConvTranspose", {x, weight}, {}, attributes);
      Tensor back = run_one(*transpose, {DType::kF32}, {x, weight}, 2)[0];
      HR_CHECK_EQ(to_string(back.shape), to_string(y.shape));
      auto dot = [](const Tensor& a, const Tensor& b) {
        std::vector<float> u = a.values<float>(), v = b.values<float>();
        double sum = 0;
        for (size_t i = 0; i < u.size(); ++i) sum += double{u[i]} * v[i];
        return sum;
      };
      HR_CHECK_NEAR(dot(shape_like, x), dot(y, back), 1e-5);
    }
  }
}

HR_TEST(conv_transpose_adds_the_bias_and_takes_an_output_shape) {
  Tensors in = {Tensor::of<float>({1, 1, 2}, {1, 10}), Tensor::of<float>({1, 1, 3}, {1, 2, 3}),
                Tensor::of<float>({1}, {0.5})};
  auto run = [&](Attributes attributes) {
    attributes["strides"] = Ints{2};
    auto op = make_op(Isa::kReference, "ConvTranspose", in, {}, attributes);
    return run_one(*op, {DType::kF32}, in)[0].values<float>();
  };
  HR_CHECK(run({}) == (std::vector<float>{1.5, 2.5, 13.5, 20.5, 30.5}));
  HR_CHECK(run({{"output_shape", Ints{4}}, {"auto_pad", std::string("SAME_UPPER")}}) ==
           (std::vector<float>{1.5, 2.5, 13.5, 20.5}));
  HR_CHECK(run({{"output_shape", Ints{6}}}) ==
           (std::vector<float>{1.5, 2.5, 13.5, 20.5, 30.5, 0.5}));
  HR_CHECK(run({{"auto_pad", std::string("SAME_LOWER")}}) ==
           (std::vector<float>{2.5, 13.5, 20.5, 30.5}));
}

template <class T>
std::vector<T> pool(const std::string& name, const Tensor& x, const Attributes& attributes) {
  auto op = make_op(Isa::kReference, name, {x}, {}, attributes, {x.dtype});
  return run_one(*op, {x.dtype}, {x}, 2)[0].values<T>();
}

HR_TEST(pools_give_the_same_channels_last) {
  Tensor x = random_tensor({2, 19, 9, 11}, 1);
  std::vector<float> values = x.values<float>();
  values[5] = kNan;
  x = Tensor::of(x.shape, values);
  Attributes strided = {{"kernel_shape", Ints{3, 2}},
                        {"strides", Ints{2, 1}},
                        {"pads", Ints{1, 0, 1, 1}},
                        {"dilations", Ints{1, 2}}};
  Attributes counting = strided, ceiling = strided;
  counting["count_include_pad"] = int64_t{1};
  ceiling["ceil_mode"] = int64_t{1};
  for (Isa isa : available_isas()) {
    for (const Attributes& attributes : {strided, counting, ceiling}) {
      for (std::string name : {"MaxPool", "AveragePool"}) {
        auto first = make_op(isa, name, {x}, {}, attributes);
        Attributes last_attributes = attributes;
        last_attributes["layout"] = std::string("nhwc");
        auto last = make_op(isa, "headrace." + name, {x}, {}, last_attributes);
        std::vector<float> expected = run_one(*first, {DType::kF32}, {x})[0].values<float>();
        Tensor y = turned(run_one(*last, {DType::kF32}, {turned(x, true)}, 3)[0], false);
        std::vector<float> got = y.values<float>();
        HR_CHECK_EQ(got.size(), expected.size());
        for (size_t i = 0; i < expected.size(); ++i) {
          bool both_nan = std::isnan(got[i]) && std::isnan(expected[i]);
          HR_CHECK(both_nan || std::abs(got[i] - expected[i]) < 1e-6f);
        }
      }
    }
  }
}

HR_TEST(max_pool_ignores_pads_and_keeps_nan) {
  Tensor x = Tensor::of<float>({1, 2, 4}, {-5, -2, -3, -7, 1, kNan, 2, 0});
  std::vector<float> y =
      pool<float>("MaxPool", x, {{"kernel_shape", Ints{3}}, {"pads", Ints{1, 1}}});
  HR_CHECK((std::vector<float>(y.begin(), y.begin() + 4) == std::vector<float>{-2, -2, -2, -3}));
  HR_CHECK(std::isnan(y[4]) && std::isnan(y[5]) && std::isnan(y[6]));
  HR_CHECK_EQ(y[7], 2.0f);
  Tensor bytes = Tensor::of<int8_t>({1, 1, 4}, {-5, -2, -3, -7});
  HR_CHECK(pool<int8_t>("MaxPool", bytes, {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}}) ==
           (std::vector<int8_t>{-2, -3}));
}

HR_TEST(max_pool_gives_indices) {
  Tensor x = Tensor::of<float>({1, 2, 2, 3}, {1, 4, 4, 0, 2, 3, 9, 8, 7, 6, 5, 9});
  auto indices = [&](int64_t storage_order) {
    auto op = make_op(Isa::kReference, "MaxPool", {x}, {},
                      {{"kernel_shape", Ints{2, 2}}, {"storage_order", storage_order}},
                      {DType::kF32, DType::kI64});
    Tensors y = run_one(*op, {DType::kF32, DType::kI64}, {x});
    HR_CHECK(y[0].values<float>() == (std::vector<float>{4, 4, 9, 9}));
    return y[1].values<int64_t>();
  };
  HR_CHECK(indices(0) == (Ints{1, 1, 6, 11}));
  HR_CHECK(indices(1) == (Ints{2, 2, 6, 11}));
}

HR_TEST(pools_round_up_in_ceil_mode) {
  Tensor x = Tensor::of<float>({1, 1, 5}, {1, 2, 3, 4, 5});
  Attributes up = {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}, {"ceil_mode", int64_t{1}}};
  HR_CHECK(pool<float>("MaxPool", x, up) == (std::vector<float>{2, 4, 5}));
  HR_CHECK(pool<float>("AveragePool", x, up) == (std::vector<float>{1.5, 3.5, 5}));
  // The pads count, what ceil_mode adds behind them does not.
  up["pads"] = Ints{0, 1};
  up["strides"] = Ints{3};
  up["kernel_shape"] = Ints{4};
  up["count_include_pad"] = int64_t{1};
  HR_CHECK(pool<float>("AveragePool", x, up) == (std::vector<float>{2.5, 3}));
  // A last window that would start in the pads is dropped.
  Attributes drop = {{"kernel_shape", Ints{1}},
                     {"strides", Ints{5}},
                     {"ceil_mode", int64_t{1}},
                     {"pads", Ints{0, 1}}};
  HR_CHECK(pool<float>("MaxPool", x, drop) == (std::vector<float>{1}));
}

HR_TEST(average_pool_counts_pads_on_demand) {
  Tensor x = Tensor::of<float>({1, 1, 2, 2}, {1, 2, 3, 6});
  Attributes a = {{"kernel_shape", Ints{2, 2}}, {"pads", Ints{1, 1, 0, 0}}};
  HR_CHECK(pool<float>("AveragePool", x, a) == (std::vector<float>{1, 1.5, 2, 3}));
  a["count_include_pad"] = int64_t{1};
  HR_CHECK(pool<float>("AveragePool", x, a) == (std::vector<float>{0.25, 0.75, 1, 3}));
}

HR_TEST(other_pools_reduce_what_they_should) {
  Tensor x = Tensor::of<float>({1, 2, 4}, {3, -4, 0, 12, 1, -1, 1, -1});
  Attributes lp = {{"kernel_shape", Ints{2}}, {"strides", Ints{2}}};
  HR_CHECK(pool<float>("LpPool", x, lp) ==
           (std::vector<float>{5, 12, std::sqrt(2.0f), std::sqrt(2.0f)}));
  lp["p"] = int64_t{1};
  HR_CHECK(pool<float>("LpPool", x, lp) == (std::vector<float>{7, 12, 2, 2}));
  HR_CHECK(pool<float>("GlobalAveragePool", x, {}) == (std::vector<float>{2.75, 0}));
  HR_CHECK(pool<float>("GlobalMaxPool", x, {}) == (std::vector<float>{12, 1}));
  std::vector<float> norms = pool<float>("GlobalLpPool", x, {});
  HR_CHECK_NEAR(norms[0], 13, 1e-6);
  HR_CHECK_NEAR(norms[1], 2, 1e-6);
}

}  // namespace
}  // namespace headrace
