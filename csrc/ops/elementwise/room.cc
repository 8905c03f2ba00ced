#include "ops/elementwise/elementwise.h"
#include "ops/rooms.h"

namespace headrace {

void register_elementwise_ops(OpRegistry& registry) {
  register_arithmetic(registry);
  register_comparison(registry);
  register_bitwise(registry);
  register_power(registry);
  register_variadic(registry);
  register_select(registry);
  register_cast(registry);
  register_predicates(registry);
}

}  // namespace headrace
