#include <algorithm>
#include <cmath>

#include "conv_cases.h"
#include "core/cpu.h"

namespace headrace {
namespace {

using namespace test;

// 3 x 3 kernels of stride 1: odd and small maps, channels beyond a vector and a packed block.
std::vector<ConvCase> winograd_cases() {
  Geometry plain, padded, uneven;
  padded.begin[1] = padded.begin[2] = padded.end[1] = padded.end[2] = 1;
  uneven.begin[1] = 2;
  uneven.end[2] = 3;
  return {
      {{2, 5, 9, 11}, {7, 5, 3, 3}, plain},      {{1, 16, 3, 3}, {16, 16, 3, 3}, plain},
      {{3, 20, 14, 14}, {40, 20, 3, 3}, padded}, {{1, 400, 7, 5}, {130, 400, 3, 3}, uneven},
      {{0, 4, 9, 9}, {4, 4, 3, 3}, padded},
  };
}

std::unique_ptr<Op> make_winograd(Isa isa, const Tensors& in, const ConvCase& c, int64_t tile) {
  Attributes attributes = c.geometry.attributes(2);
  attributes["winograd"] = tile;
  attributes["activation"] = std::string("clip");
  attributes["clip_min"] = -3.0;
  attributes["clip_max"] = 50.0;
  return make_fused_conv(isa, in, attributes);
}

HR_TEST(winograd_agrees_with_double_precision) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : winograd_cases()) {
      for (int64_t tile : {2, 4}) {
        Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2),
                      random_tensor({c.weight[0]}, 3)};
        std::vector<double> expected = conv_in_double(in[0], in[1], in[2], c.geometry);
        in[0] = turned(in[0], true);
        Shape y = c.x;
        y[1] = c.weight[0];
        for (int axis : {1, 2}) {
          y[axis + 1] += c.geometry.begin[axis] + c.geometry.end[axis] - 2;
        }
        Tensor added = random_tensor(y, 4);
        in.push_back(turned(added, true));
        std::vector<float> residual = added.values<float>();
        for (size_t i = 0; i < expected.size(); ++i) {
          expected[i] = std::min(50.0, std::max(-3.0, expected[i] + residual[i]));
        }
        auto op = make_winograd(isa, in, c, tile);
        // The bound that docs/performance.md states, of the norm of what is summed.
        double bound = 1e-5 * std::sqrt(9.0 * static_cast<double>(c.weight[1]));
        for (int threads : {1, 3}) {
          check_near(turned(run_one(*op, {DType::kF32}, in, threads)[0], false), expected, bound);
        }
      }
    }
  }
}

HR_TEST(winograd_bits_do_not_depend_on_the_batch_or_the_threads) {
  for (Isa isa : available_isas()) {
    for (const ConvCase& c : winograd_cases()) {
      if (c.x[0] == 0) continue;
      for (int64_t tile : {2, 4}) {
        std::vector<Tensors> requests;
        for (int64_t r = 0; r < 7; ++r) {
          Shape shape = c.x;
          shape[0] = 1 + 3 * (r % 2);
          if (r > 3) shape[3] += r;  // the first four run as one
          requests.push_back({turned(random_tensor(shape, static_cast<uint32_t>(r)), true),
                              random_tensor(c.weight, 9)});
        }
        auto op = make_winograd(isa, requests[0], c, tile);
        for (int threads : {1, 2, 5}) {
          std::vector<Tensors> together = run_op(*op, {DType::kF32}, requests, threads);
          for (size_t r = 0; r < requests.size(); ++r) {
            HR_CHECK(run_one(*op, {DType::kF32}, requests[r])[0].bytes == together[r][0].bytes);
          }
        }
      }
    }
  }
}

HR_TEST(winograd_refuses_what_it_does_not_compute) {
  Geometry strided, dilated, grouped;
  strided.stride[1] = 2;
  dilated.dilation[2] = 2;
  grouped.groups = 2;
  for (const ConvCase& c : {ConvCase{{1, 4, 9, 9}, {4, 4, 3, 3}, strided},
                            ConvCase{{1, 4, 9, 9}, {4, 4, 3, 3}, dilated},
                            ConvCase{{1, 4, 9, 9}, {4, 2, 3, 3}, grouped},
                            ConvCase{{1, 4, 9, 9}, {4, 4, 5, 3}, Geometry{}},
                            ConvCase{{1, 4, 9}, {4, 4, 3}, Geometry{}}}) {
    Attributes attributes = c.geometry.attributes(c.x.rank() - 2);
    attributes["winograd"] = int64_t{4};
    Tensors in = {random_tensor(c.x, 1), random_tensor(c.weight, 2)};
    HR_CHECK_THROWS(make_fused_conv(selected_isa(), in, attributes), Error);
  }
}

}  // namespace
}  // namespace headrace
