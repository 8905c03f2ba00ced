// The shapes of numpy.matmul, for every op that multiplies that way.
#pragma once

#include <span>

#include "core/strided.h"
#include "core/tensor.h"

namespace headrace {

struct MatMulShape {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t cols = 0;
  Shape batch;
  Strides a_steps;  // elements from matrix to matrix along each axis of `batch`
  Strides b_steps;
};

// Throws Error(kShapeMismatch).
MatMulShape matmul_shape(const Shape& a, const Shape& b);
void infer_matmul(const Shape& a, const Shape& b, std::span<Shape> outputs);

}  // namespace headrace
