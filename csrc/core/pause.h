// Short waits between threads.
#pragma once

namespace headrace {

// Tells the core that this thread spins.
inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Cores this process may use, by affinity. With one, spinning only delays whoever is waited for.
int usable_cores();

}  // namespace headrace
