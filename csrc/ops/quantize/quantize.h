// Linear quantisation.
#pragma once

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"

namespace headrace {

using QuantizedTypes = Types<uint8_t, int8_t, uint16_t, int16_t>;
using ScaleTypes = Types<float, Half, BFloat16>;

void register_quantize(OpRegistry& registry);
void register_byte_ops(OpRegistry& registry);

}  // namespace headrace
