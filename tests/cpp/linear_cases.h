// Random operands and ops made from them, for the tests of the linear room.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "op_harness.h"

namespace headrace::test {

inline Tensor random_tensor(Shape shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(random);
  return Tensor::of(shape, values);
}

// An op whose inputs listed in `constants` are known at plan time; a dtype of kNone is absent.
inline std::unique_ptr<Op> make_op(Isa isa, const std::string& name, const Tensors& inputs,
                                   const std::vector<size_t>& constants,
                                   std::map<std::string, Attribute, std::less<>> attributes = {}) {
  NodeSpec spec;
  spec.op = name;
  spec.isa = isa;
  spec.attributes = std::move(attributes);
  spec.constants.resize(inputs.size());
  for (const Tensor& input : inputs) spec.input_dtypes.push_back(input.dtype);
  for (size_t i : constants) {
    if (inputs[i].dtype != DType::kNone) spec.constants[i] = inputs[i].view();
  }
  spec.output_dtypes = {inputs[0].dtype};
  return OpRegistry::global().make(spec);
}

}  // namespace headrace::test
