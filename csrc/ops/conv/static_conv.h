#pragma once

#include <memory>

#include "ops/op.h"

namespace headrace {

std::unique_ptr<Op> make_quantized_conv(const NodeSpec& node);

}  // namespace headrace
