#include "core/fork.h"

#include <pthread.h>

#include <atomic>

namespace headrace {
namespace {

std::atomic<int> counted{0};

// At load, before there can be anything that a fork leaves without its threads.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++counted; });

}  // namespace

int forks() {
  return counted.load(std::memory_order_relaxed);
}

}  // namespace headrace
