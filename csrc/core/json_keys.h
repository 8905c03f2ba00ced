// Keys that JSON text has twice, which parsers pass over in silence.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace headrace {

// A key that some object of a valid JSON text has more than once, without its escapes; nothing if
// all keys are single. Text that is not JSON gives either. Linear but for objects of many keys, and
// without recursion.
std::optional<std::string> twofold_key(std::string_view json);

}  // namespace headrace
