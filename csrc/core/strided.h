// Walking tensors by strides: broadcasting, transposing, slicing.
#pragma once

#include <span>

#include "core/tensor.h"

namespace headrace {

// numpy's broadcast of two shapes. Throws Error(kShapeMismatch).
Shape broadcast(const Shape& a, const Shape& b);

// `axis` of a tensor of `rank` dims, counted from the back if negative.
// Throws Error(kShapeMismatch) if there is no such axis.
int normalize_axis(int64_t axis, int rank);

// Row-major strides in elements.
struct Strides {
  int64_t of[kMaxRank] = {};
  int64_t operator[](int axis) const { return of[axis]; }
  int64_t& operator[](int axis) { return of[axis]; }
};
Strides strides_of(const Shape& shape);
// Strides that read `from` as if it were broadcast to `to`: 0 along the axes that repeat.
Strides broadcast_strides(const Shape& from, const Shape& to);

// A nest of loops over one shape for several tensors that step through it by their own strides.
// Axes that all tensors step through alike are merged, so that the innermost loop is long.
class Nest {
 public:
  static constexpr int kMaxTensors = 4;

  Nest(const Shape& shape, std::span<const Strides> strides);

  // Iterations of the loops around the innermost.
  int64_t outer() const { return outer_; }
  // Length of the innermost loop, and the step of tensor t in it.
  int64_t inner() const { return dims_[rank_ - 1]; }
  int64_t inner_stride(int t) const { return strides_[t][rank_ - 1]; }

  // The loop around the innermost: its length, 1 if there is none, and the step of tensor t in it.
  int64_t rows() const { return rank_ > 1 ? dims_[rank_ - 2] : 1; }
  int64_t row_stride(int t) const { return rank_ > 1 ? strides_[t][rank_ - 2] : 0; }

  // Calls body(offsets) for the outer iterations [begin, end), in order; offsets[t] is where
  // tensor t stands at the start of the innermost loop, in elements.
  template <class Body>
  void walk(int64_t begin, int64_t end, Body&& body) const {
    if (begin >= end) return;
    int64_t index[kMaxRank] = {};
    int64_t offsets[kMaxTensors] = {};
    int64_t rest = begin;
    for (int axis = rank_ - 2; axis >= 0; --axis) {
      index[axis] = rest % dims_[axis];
      rest /= dims_[axis];
      for (int t = 0; t < tensors_; ++t) offsets[t] += index[axis] * strides_[t][axis];
    }
    for (int64_t i = begin; i < end; ++i) {
      body(static_cast<const int64_t*>(offsets));
      for (int axis = rank_ - 2; axis >= 0; --axis) {
        for (int t = 0; t < tensors_; ++t) offsets[t] += strides_[t][axis];
        if (++index[axis] < dims_[axis]) break;
        for (int t = 0; t < tensors_; ++t) offsets[t] -= dims_[axis] * strides_[t][axis];
        index[axis] = 0;
      }
    }
  }

 private:
  int rank_ = 0;  // at least 1
  int tensors_;
  int64_t outer_ = 1;
  int64_t dims_[kMaxRank];
  int64_t strides_[kMaxTensors][kMaxRank];
};

// Copies the elements of `from`, walked by `strides` over `shape`, to `to`, which is dense.
// Elements have `size` bytes.
void gather_strided(void* to, const void* from, const Shape& shape, const Strides& strides,
                    int64_t size);
// The outer iterations [begin, end) of the same, for callers that split the work.
void gather_strided(void* to, const void* from, const Nest& nest, int64_t begin, int64_t end,
                    int64_t size);
// Copies dense `from` to the elements of `to` walked by `strides` over `shape`.
void scatter_strided(void* to, const void* from, const Shape& shape, const Strides& strides,
                     int64_t size);

}  // namespace headrace
