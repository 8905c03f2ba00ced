#include "ops/rooms.h"
#include "ops/signal/signal.h"

namespace headrace {

void register_signal_ops(OpRegistry& registry) {
  register_dft(registry);
  register_windows(registry);
}

}  // namespace headrace
