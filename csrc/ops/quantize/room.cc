#include "ops/quantize/quantize.h"
#include "ops/rooms.h"

namespace headrace {

void register_quantize_ops(OpRegistry& registry) {
  register_quantize(registry);
  register_byte_ops(registry);
}

}  // namespace headrace
