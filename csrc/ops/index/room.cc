#include "ops/index/index_ops.h"
#include "ops/rooms.h"

namespace headrace {

void register_index_ops(OpRegistry& registry) {
  register_gather(registry);
  register_scatter(registry);
  register_find(registry);
  register_unique(registry);
  register_sort(registry);
  register_scan(registry);
  register_sequence(registry);
  register_loss(registry);
}

}  // namespace headrace
