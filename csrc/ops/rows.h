// Splitting the rows of all Requests of a Batch over the threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/op.h"

namespace headrace {

// Elements below which an op that streams through memory is not worth a second thread: about as
// long as waking one takes.
inline constexpr int64_t kMinElementsPerThread = 16384;

// Calls body(request, begin, end) so that every row [0, rows_of(request)) of every Request is in
// exactly one call. A call runs on any thread; threads get at least `min_rows` rows.
template <class RowsOf, class Body>
void for_rows(const OpRun& run, int64_t min_rows, RowsOf&& rows_of, Body&& body) {
  int64_t total = 0;
  for (size_t r = 0; r < run.requests(); ++r) total += rows_of(r);
  run.parallel_ranges(total, min_rows, [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;  // of the Request's rows, counted over all Requests
    for (size_t r = 0; r < run.requests() && first < end; ++r) {
      int64_t rows = rows_of(r);
      int64_t from = std::max(begin - first, int64_t{0});
      int64_t to = std::min(end - first, rows);
      if (from < to) body(r, from, to);
      first += rows;
    }
  });
}

// How many rows of `row_elements` are worth a thread.
inline int64_t min_rows_of(int64_t row_elements, int64_t min_elements = kMinElementsPerThread) {
  return std::max<int64_t>(min_elements / std::max<int64_t>(row_elements, 1), 1);
}

}  // namespace headrace
