#include "ops/reduce/reduce.h"
#include "ops/rooms.h"

namespace headrace {

void register_reduce_ops(OpRegistry& registry) {
  register_reduce(registry);
  register_arg(registry);
}

}  // namespace headrace
