// The poolings' part of the room.
#pragma once

#include "ops/op.h"

namespace headrace {

void register_pools(OpRegistry& registry);
void register_global_pools(OpRegistry& registry);
void register_pixel_pools(OpRegistry& registry);

}  // namespace headrace
