// Casts between the float dtypes, per ISA. Null where an ISA has no instruction for one.
#pragma once

#include "ops/elementwise/elementwise.h"
#include "ops/simd/dispatch.h"

namespace headrace {

struct CastKernels {
  ElementLoop f32_to_f16;
  ElementLoop f16_to_f32;
  ElementLoop f32_to_bf16;
  ElementLoop bf16_to_f32;
};

HEADRACE_DECLARE_KERNELS(CastKernels, cast_kernels)

}  // namespace headrace
