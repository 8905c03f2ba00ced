// Whether this process is still the one in which something was made.
#pragma once

namespace headrace {

// How many forks lie between the process that loaded this library and this one. Threads that were
// made at another count are not in this process, and what they held then is held for ever.
int forks();

}  // namespace headrace
