// Walking the tensors of a ragged Batch in one launch: a table holds one row per Request, and a
// block finds its row by blockIdx.y. A Batch of more Requests than a grid has rows takes several.
#pragma once

#include <algorithm>

#include "core/strided.h"
#include "cuda/kernel.h"
#include "cuda/op.h"

namespace headrace::cuda {

inline constexpr int64_t kLoopThreads = 256;
// Elements per thread that a grid is cut for: enough to hide the launch, few enough to fill a GPU.
inline constexpr int64_t kLoopElements = 4;

// Blocks of kLoopThreads whose x dimension covers the longest row.
inline LaunchShape loop_shape(int64_t longest) {
  return {dim3(blocks_for(longest, kLoopThreads * kLoopElements)), dim3(kLoopThreads), 0};
}

// Launches the kernel with blockIdx.y counting the rows of a table that was sent, the kernel's
// first parameter: as many of them at a time as a grid takes. `shape` is that of one row.
template <class Row, class... Params, class... Args>
void launch_rows(Stream& stream, LaunchShape shape, void (*kernel)(const Row*, Params...),
                 const Table<Row>& table, Args... args) {
  in_stretches(static_cast<int64_t>(table.rows.size()), 1, [&](int64_t first, int64_t count) {
    shape.grid.y = static_cast<unsigned>(count);
    launch(stream, shape, kernel, table.device + first, args...);
  });
}

// A nest of loops over one Request's output, and how N inputs step through it. Element i of the
// output comes from element offset(i, n) of input n.
template <int N>
struct StridedLoop {
  int64_t count;
  int64_t out;    // first element
  int64_t in[N];  // likewise
  int32_t rank;
  int64_t dims[kMaxRank];
  int64_t strides[N][kMaxRank];

  // `strides` of each input along the axes of `shape`. Neighbouring axes are merged where all
  // inputs step through them alike.
  void set(const Shape& shape, const Strides (&steps)[N]) {
    count = shape.elements();
    rank = 0;
    for (int axis = 0; axis < shape.rank(); ++axis) {
      if (shape[axis] == 1) continue;
      bool merges = rank > 0;
      for (int n = 0; n < N && merges; ++n) {
        merges = strides[n][rank - 1] == steps[n][axis] * shape[axis];
      }
      if (!merges) dims[rank++] = 1;
      dims[rank - 1] *= shape[axis];
      for (int n = 0; n < N; ++n) strides[n][rank - 1] = steps[n][axis];
    }
  }

  __device__ void offsets(int64_t i, int64_t (&at)[N]) const {
    for (int n = 0; n < N; ++n) at[n] = in[n];
    for (int axis = rank - 1; axis >= 0; --axis) {
      int64_t index = axis > 0 ? i % dims[axis] : i;
      i /= dims[axis];
      for (int n = 0; n < N; ++n) at[n] += index * strides[n][axis];
    }
  }
};

// The loops of an op that broadcasts its inputs numpy's way. One row for all Requests where every
// input either has the output's shape or is a single shared element.
template <int N>
Table<StridedLoop<N>> broadcast_loops(CudaRun& run, const size_t (&inputs)[N], int64_t& longest) {
  const Segments& out = run.output(0);
  bool flat = true;
  for (size_t i : inputs) {
    const Segments& in = run.input(i);
    if (in.shared) {
      flat = flat && in.elements() == 1;
    } else {
      for (size_t r = 0; r < run.requests() && flat; ++r) flat = in.shape(r) == out.shape(r);
    }
  }
  auto table = run.table<StridedLoop<N>>(flat ? 1 : run.requests());
  longest = 0;
  for (size_t r = 0; r < table.rows.size(); ++r) {
    StridedLoop<N>& loop = table.rows[r];
    Shape shape = flat ? Shape{out.elements()} : out.shape(r);
    Strides steps[N];
    for (int n = 0; n < N; ++n) {
      const Segments& in = run.input(inputs[n]);
      loop.in[n] = in.shared || flat ? 0 : in.offsets[r];
      if (flat) {
        steps[n][0] = in.shared ? 0 : 1;
      } else {
        steps[n] = broadcast_strides(in.shape(r), shape);
      }
    }
    loop.out = flat ? 0 : out.offsets[r];
    loop.set(shape, steps);
    longest = std::max(longest, loop.count);
  }
  run.send(table);
  return table;
}

}  // namespace headrace::cuda
