// What admission goes by, for the Batcher and for its simulation.
#pragma once

namespace headrace {

// The share of the time to a deadline that admission lets the backlog fill. The rest is what
// Batches grow into: with none left, each would be cut down to its most urgent Job.
inline constexpr double kBacklogShare = 0.75;

}  // namespace headrace
