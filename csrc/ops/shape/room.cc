#include "ops/rooms.h"
#include "ops/shape/shape_ops.h"

namespace headrace {

void register_shape_ops(OpRegistry& registry) {
  register_views(registry);
}

}  // namespace headrace
