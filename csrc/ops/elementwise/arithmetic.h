// The float32 loops of arithmetic, per ISA.
#pragma once

#include "ops/elementwise/elementwise.h"
#include "ops/simd/dispatch.h"

namespace headrace {

struct ArithmeticKernels {
  ElementLoop add;
  ElementLoop sub;
  ElementLoop mul;
  ElementLoop div;
  ElementLoop max;
  ElementLoop min;
  ElementLoop clip;  // x, low, high
};

HEADRACE_DECLARE_KERNELS(ArithmeticKernels, arithmetic_kernels)

}  // namespace headrace
