#include "ops/index/index_ops.h"
#include "ops/rooms.h"

namespace headrace {

void register_index_ops(OpRegistry& registry) {
  register_gather(registry);
}

}  // namespace headrace
