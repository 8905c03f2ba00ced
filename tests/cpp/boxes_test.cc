#include <vector>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;

Tensor aligned(const std::vector<float>& region) {
  NodeSpec spec;
  spec.op = "RoiAlign";
  spec.name = "node";
  spec.opset = 16;
  spec.input_dtypes = {DType::kF32, DType::kF32, DType::kI64};
  spec.output_dtypes = {DType::kF32};
  spec.constants.resize(3);
  Tensor image = Tensor::of<float>({1, 1, 4, 4}, std::vector<float>(16, 2.0F));
  Tensor regions = Tensor::of<float>({1, 4}, region);
  return test::run_one(*OpRegistry::global().make(spec), {DType::kF32},
                       {image, regions, Tensor::of<int64_t>({1}, {0})})[0];
}

HR_TEST(a_region_far_larger_than_its_image_is_refused_before_it_is_sampled) {
  HR_CHECK_NEAR(aligned({1, 1, 3, 3}).values<float>().at(0), 2.0, 1e-6);
  HR_CHECK_EQ(aligned({0, 0, 64, 64}).shape.elements(), 1);
  HR_CHECK_THROWS(aligned({0, 0, 65, 4}), Error);
  HR_CHECK_THROWS(aligned({0, 0, 4, 1e6F}), Error);
}

}  // namespace
}  // namespace headrace
