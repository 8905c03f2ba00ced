// Counts heap allocations of the whole process, for tests that promise there are none.
#pragma once

#include <cstdint>

namespace headrace::test {

int64_t heap_allocations();

}  // namespace headrace::test
