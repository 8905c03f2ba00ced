// ConvTranspose's part of the room.
#pragma once

#include <memory>

#include "ops/op.h"

namespace headrace {

std::unique_ptr<Op> make_conv_transpose(const NodeSpec& spec);

}  // namespace headrace
