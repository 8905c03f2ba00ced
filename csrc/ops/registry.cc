// Every room's ops, in one place and in no static initialiser.
#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {

const OpRegistry& OpRegistry::global() {
  static const OpRegistry registry = [] {
    OpRegistry all;
    register_activation_ops(all);
    register_elementwise_ops(all);
    register_linear_ops(all);
    register_shape_ops(all);
    return all;
  }();
  return registry;
}

}  // namespace headrace
