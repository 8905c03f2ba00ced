// Every room's ops, in one place and in no static initialiser.
#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {

const OpRegistry& OpRegistry::global() {
  static const OpRegistry registry = [] {
    OpRegistry all;
#define HEADRACE_ROOM(room) register_##room##_ops(all);
#include "rooms.inc"  // written by CMake: one HEADRACE_ROOM per folder that was built
#undef HEADRACE_ROOM
    return all;
  }();
  return registry;
}

}  // namespace headrace
