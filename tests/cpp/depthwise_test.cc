#include <algorithm>
#include <cmath>
#include <limits>

#include "conv_cases.h"
#include "core/cpu.h"

namespace headrace {
namespace {

using namespace test;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

HR_TEST(depthwise_fused_conv_takes_any_activation_and_relu_keeps_nan) {
  for (Isa isa : available_isas()) {
    Geometry g;
    g.groups = 20;
    Tensors in = {random_tensor({1, 20, 6, 7}, 1), random_tensor({20, 1, 3, 3}, 2),
                  random_tensor({20}, 3)};
    std::vector<double> plain = conv_in_double(in[0], in[1], in[2], g);
    in[0] = turned(in[0], true);
    Attributes attributes = g.attributes(2);
    attributes["activation"] = std::string("silu");
    for (double& value : plain) value = value / (1.0 + std::exp(-value));
    auto silu = make_fused_conv(isa, in, attributes);
    check_near(turned(run_one(*silu, {DType::kF32}, in)[0], false), plain, 2e-5);
    attributes["activation"] = std::string("relu");
    auto relu = make_fused_conv(isa, in, attributes);
    in[0].bytes = Tensor::of(in[0].shape, std::vector<float>(20 * 6 * 7, kNan)).bytes;
    for (float value : run_one(*relu, {DType::kF32}, in)[0].values<float>()) {
      HR_CHECK(std::isnan(value));
    }
  }
}

HR_TEST(depthwise_conv_reads_and_writes_bfloat16) {
  Geometry strided, dilated;
  for (Geometry* g : {&strided, &dilated}) {
    g->groups = 37;
    g->begin[1] = g->begin[2] = g->end[1] = g->end[2] = 1;
  }
  strided.stride[1] = strided.stride[2] = 2;
  dilated.dilation[2] = 2;
  Geometry same = strided;
  same.stride[1] = same.stride[2] = 1;
  for (Isa isa : available_isas()) {
    for (const Geometry& g : {same, strided, dilated}) {
      for (const char* activation : {"relu", "silu"}) {
        Tensors in = {rounded(random_tensor({2, 37, 9, 23}, 1)), random_tensor({37, 1, 3, 3}, 2),
                      random_tensor({37}, 3)};
        std::vector<double> expected = conv_in_double(widened(in[0]), in[1], in[2], g);
        for (double& y : expected) {
          y = activation[0] == 'r' ? std::max(0.0, y) : y / (1.0 + std::exp(-y));
        }
        Attributes attributes = g.attributes(2);
        attributes["precision"] = std::string("bf16");
        attributes["activation"] = std::string(activation);
        attributes["layout"] = std::string("nhwc");
        for (DType x : {DType::kF32, DType::kBF16}) {
          Tensors turned_in = {turned(widened(in[0]), true), in[1], in[2]};
          if (x == DType::kBF16) turned_in[0] = rounded(turned_in[0]);
          auto wide = make_op(isa, "headrace.FusedConv", turned_in, {1, 2}, attributes);
          Tensor y = run_one(*wide, {DType::kF32}, turned_in, 2)[0];
          check_near(turned(y, false), expected, 2e-5);
          auto narrow =
              make_op(isa, "headrace.FusedConv", turned_in, {1, 2}, attributes, {DType::kBF16});
          HR_CHECK(run_one(*narrow, {DType::kBF16}, turned_in)[0].bytes == rounded(y).bytes);
        }
      }
    }
  }
}

}  // namespace
}  // namespace headrace
