// Which build of the runtime this is, for what outlives a process: saved Plans.
#pragma once

#include <string_view>

namespace headrace {

// SHA-256, in hex, over the sources that decide what packed memory looks like and what ops mean:
// csrc/core, csrc/ops and csrc/runtime.
std::string_view fingerprint();

}  // namespace headrace
