#include "ops/rooms.h"
#include "ops/shape/shape_ops.h"

namespace headrace {

void register_shape_ops(OpRegistry& registry) {
  register_views(registry);
  register_transpose(registry);
  register_slice(registry);
  register_concat(registry);
  register_generate(registry);
  register_pad(registry);
}

}  // namespace headrace
