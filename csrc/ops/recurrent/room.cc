#include "ops/recurrent/recurrent.h"
#include "ops/rooms.h"

namespace headrace {

void register_recurrent_ops(OpRegistry& registry) {
  register_recurrent(registry);
}

}  // namespace headrace
