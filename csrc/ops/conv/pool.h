// The poolings' part of the room.
#pragma once

#include <memory>

#include "ops/op.h"

namespace headrace {

void register_pools(OpRegistry& registry);
void register_global_pools(OpRegistry& registry);
void register_pixel_pools(OpRegistry& registry);

// headrace.MaxPool of uint8 or int8.
std::unique_ptr<Op> make_byte_pool(const NodeSpec& spec);

}  // namespace headrace
