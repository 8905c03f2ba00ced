// Short measurements of the machine, for the people and the planner who ask what it can do.
#pragma once

#include <cstdint>

namespace headrace {

// The median time, in seconds, of a region of one task per thread that does nothing but wait until
// all have begun, in a pool of its own whose workers are awake: what an op that is spread over that
// many threads pays at least. Takes some milliseconds, and more where there are fewer cores.
double fork_join_seconds(int threads);

// Bytes per second that `threads` threads copy together, from one buffer of `bytes` to another:
// what is read and what is written both count. The best of some runs, past the caches where `bytes`
// is larger than they are. Allocates twice `bytes`.
double copy_bytes_per_second(int threads, int64_t bytes);

}  // namespace headrace
