#include "ops/shape/transpose_kernels.h"

#include "ops/simd/transpose.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

constexpr int64_t kLanes = Vf::kLanes;
constexpr int64_t kLine = 16;  // floats of a cache line
// Columns of `to` that are filled before going on along its rows. Few, so that each of their
// sources is a stream the prefetcher can follow.
constexpr int64_t kSources = kLine > kLanes ? kLine : kLanes;

// kLanes x kLanes elements in registers.
template <bool kStreams>
HR_INLINE void tile(const float* from, int64_t step, float* to, int64_t columns) {
  Vf rows[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) rows[i] = load(from + i * step);
  transpose(rows);
  for (int64_t i = 0; i < kLanes; ++i) {
    if (kStreams) {
      stream(to + i * columns, rows[i]);
    } else {
      store(to + i * columns, rows[i]);
    }
  }
}

HR_INLINE void edge(const float* from, int64_t step, float* to, int64_t columns, int64_t height,
                    int64_t width) {
  for (int64_t r = 0; r < height; ++r) {
    for (int64_t c = 0; c < width; ++c) to[r * columns + c] = from[r + c * step];
  }
}

// Few columns, as of an image in colours, interleaved: GCC makes permutations of it.
template <int kWidth>
HR_INLINE void interleave(const float* from, int64_t step, float* __restrict to, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kWidth; ++c) to[r * kWidth + c] = from[r + c * step];
  }
}

// Reads along `from`, a line of each of kSources sources at a time, and writes whole lines.
template <bool kStreams>
HR_INLINE void matrix_by_tiles(const float* from, int64_t step, float* to, int64_t rows,
                               int64_t columns) {
  int64_t c = 0;
  for (; c + kSources <= columns; c += kSources) {
    int64_t r = 0;
    for (; r + kLanes <= rows; r += kLanes) {
      for (int64_t part = 0; part < kSources; part += kLanes) {
        tile<kStreams>(from + r + (c + part) * step, step, to + r * columns + c + part, columns);
      }
    }
    edge(from + r + c * step, step, to + r * columns + c, columns, rows - r, kSources);
  }
  edge(from + c * step, step, to + c, columns, rows, columns - c);
}

void matrix(const float* from, int64_t step, float* to, int64_t rows, int64_t columns,
            bool streams) {
  if (columns == 2) return interleave<2>(from, step, to, rows);
  if (columns == 3) return interleave<3>(from, step, to, rows);
  if (columns == 4) return interleave<4>(from, step, to, rows);
  bool whole_lines = reinterpret_cast<uintptr_t>(to) % 64 == 0 && columns % kLine == 0;
  if (streams && whole_lines) {
    matrix_by_tiles<true>(from, step, to, rows, columns);
    end_stream();
  } else {
    matrix_by_tiles<false>(from, step, to, rows, columns);
  }
}

}  // namespace

extern const TransposeKernels transpose_kernels = {.matrix = matrix};

}  // namespace headrace::HEADRACE_ISA_NS
