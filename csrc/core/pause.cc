#include "core/pause.h"

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace headrace {

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace headrace
