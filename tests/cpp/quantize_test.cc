#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "op_harness.h"

namespace headrace {
namespace {

using test::Tensor;
using test::Tensors;

NodeSpec node(std::string op, std::vector<DType> inputs, DType output, Isa isa) {
  NodeSpec spec;
  spec.op = std::move(op);
  spec.name = "node";
  spec.opset = 21;
  spec.constants.resize(inputs.size());
  spec.input_dtypes = std::move(inputs);
  spec.output_dtypes = {output};
  spec.attributes["axis"] = int64_t{1};
  spec.isa = isa;
  return spec;
}

// [3, 4, width]: with one scale, or one for each of the 4.
template <class Y>
void check(int64_t width, int64_t scales, Isa isa) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<float> x(static_cast<size_t>(12 * width));
  for (float& value : x) value = normal(random);
  const float special[] = {INFINITY, -INFINITY, NAN, 1e30f, -0.0f, 0.375f, 0.125f};
  for (size_t i = 0; i < std::size(special); ++i) x[i * x.size() / 8] = special[i];
  std::vector<float> scale{0.25f, 0.1f, 3.0f, 0.017f};
  std::vector<Y> zero{Y(3), Y(100), Y(-7), Y(0)};
  scale.resize(static_cast<size_t>(scales));
  zero.resize(static_cast<size_t>(scales));
  Shape shape{3, 4, width};
  Shape one = scales == 1 ? Shape{} : Shape{scales};
  Tensor by = Tensor::of<float>(one, scale), offset = Tensor::of<Y>(one, zero);
  constexpr DType kY = kDTypeOf<Y>;
  auto to =
      OpRegistry::global().make(node("QuantizeLinear", {DType::kF32, DType::kF32, kY}, kY, isa));
  auto from =
      OpRegistry::global().make(node("DequantizeLinear", {kY, DType::kF32, kY}, DType::kF32, isa));
  for (int threads : {1, 3}) {
    Tensor q = test::run_one(*to, {kY}, {Tensor::of<float>(shape, x), by, offset}, threads)[0];
    Tensor back = test::run_one(*from, {DType::kF32}, {q, by, offset}, threads)[0];
    std::vector<Y> got = q.values<Y>();
    std::vector<float> wide = back.values<float>();
    int wrong = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      size_t c = scales == 1 ? 0 : i / static_cast<size_t>(width) % 4;
      float near = std::rint(x[i] / scale[c]);
      double whole = std::isnan(near) ? 0 : std::clamp(static_cast<double>(near), -1e9, 1e9);
      double low = std::numeric_limits<Y>::min(), high = std::numeric_limits<Y>::max();
      Y want = static_cast<Y>(std::clamp(whole + zero[c], low, high));
      wrong += got[i] != want;
      wrong += wide[i] != static_cast<float>(int{want} - int{zero[c]}) * scale[c];
    }
    if (wrong > 0) test::report(__FILE__, __LINE__, width, " x ", scales, ": ", wrong, " wrong");
  }
}

HR_TEST(quantize_rounds_saturates_and_comes_back_on_every_isa) {
  for (Isa isa : available_isas()) {
    for (int64_t width : {1, 5, 16, 333, 9000}) {
      for (int64_t scales : {1, 4}) {
        check<uint8_t>(width, scales, isa);
        check<int8_t>(width, scales, isa);
      }
    }
  }
}

}  // namespace
}  // namespace headrace
