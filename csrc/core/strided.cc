#include "core/strided.h"

#include <cstring>

#include "core/visit.h"

namespace headrace {

Shape broadcast(const Shape& a, const Shape& b) {
  Shape result;
  int rank = std::max(a.rank(), b.rank());
  for (int i = 0; i < rank; ++i) {
    int64_t in_a = i < rank - a.rank() ? 1 : a[i - (rank - a.rank())];
    int64_t in_b = i < rank - b.rank() ? 1 : b[i - (rank - b.rank())];
    if (in_a != in_b && in_a != 1 && in_b != 1) {
      fail(ErrorKind::kShapeMismatch, "got shapes ", to_string(a), " and ", to_string(b),
           ", expected shapes that broadcast: axis ", i - rank, " is ", in_a, " and ", in_b);
    }
    result.push_back(in_a == 1 ? in_b : in_a);
  }
  return result;
}

int normalize_axis(int64_t axis, int rank) {
  if (axis < -rank || axis >= rank) {
    fail(ErrorKind::kShapeMismatch, "got axis ", axis, ", expected one of a tensor of ", rank,
         " dims");
  }
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

Strides strides_of(const Shape& shape) {
  Strides strides;
  int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

Strides broadcast_strides(const Shape& from, const Shape& to) {
  Strides dense = strides_of(from);
  Strides strides;
  int added = to.rank() - from.rank();
  for (int axis = 0; axis < from.rank(); ++axis) {
    strides[axis + added] = from[axis] == 1 ? 0 : dense[axis];
  }
  return strides;
}

Nest::Nest(const Shape& shape, std::span<const Strides> strides)
    : tensors_(static_cast<int>(strides.size())) {
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == 1) continue;
    bool merges = rank_ > 0;
    for (int t = 0; t < tensors_ && merges; ++t) {
      merges = strides_[t][rank_ - 1] == strides[t][axis] * shape[axis];
    }
    if (merges) {
      dims_[rank_ - 1] *= shape[axis];
    } else {
      dims_[rank_++] = shape[axis];
    }
    for (int t = 0; t < tensors_; ++t) strides_[t][rank_ - 1] = strides[t][axis];
  }
  if (rank_ == 0) {
    dims_[rank_++] = 1;
    for (int t = 0; t < tensors_; ++t) strides_[t][0] = 1;
  }
  for (int axis = 0; axis + 1 < rank_; ++axis) outer_ *= dims_[axis];
  if (dims_[rank_ - 1] == 0) outer_ = 0;
}

namespace {

template <class T>
void copy_run(T* to, int64_t to_step, const T* from, int64_t from_step, int64_t n) {
  if (to_step == 1 && from_step == 1) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * to_step] = from[i * from_step];
  }
}

// A transposition: what lies side by side in `from` is rows apart in `to`. Tile by tile, so that
// the cache lines of a tile are used up while they are there.
template <class T>
void copy_transposed(T* to, const T* from, int64_t rows, int64_t columns, int64_t from_step) {
  constexpr int64_t kTile = 16;
  for (int64_t row = 0; row < rows; row += kTile) {
    int64_t row_end = std::min(row + kTile, rows);
    for (int64_t column = 0; column < columns; column += kTile) {
      int64_t column_end = std::min(column + kTile, columns);
      for (int64_t r = row; r < row_end; ++r) {
        for (int64_t c = column; c < column_end; ++c) to[r * columns + c] = from[r + c * from_step];
      }
    }
  }
}

}  // namespace

void gather_strided(void* to, const void* from, const Nest& nest, int64_t begin, int64_t end,
                    int64_t size) {
  visit_size(size, [&]<class T>() {
    if (nest.rows() > 1 && nest.row_stride(0) == 1 && nest.inner_stride(0) > 1) {
      while (begin < end) {
        int64_t rows = std::min(nest.rows() - begin % nest.rows(), end - begin);
        nest.walk(begin, begin + 1, [&](const int64_t* offsets) {
          copy_transposed(static_cast<T*>(to) + begin * nest.inner(),
                          static_cast<const T*>(from) + offsets[0], rows, nest.inner(),
                          nest.inner_stride(0));
        });
        begin += rows;
      }
      return;
    }
    T* out = static_cast<T*>(to) + begin * nest.inner();
    nest.walk(begin, end, [&](const int64_t* offsets) {
      copy_run(out, 1, static_cast<const T*>(from) + offsets[0], nest.inner_stride(0),
               nest.inner());
      out += nest.inner();
    });
  });
}

void gather_strided(void* to, const void* from, const Shape& shape, const Strides& strides,
                    int64_t size) {
  Nest nest(shape, {&strides, 1});
  gather_strided(to, from, nest, 0, nest.outer(), size);
}

void scatter_strided(void* to, const void* from, const Shape& shape, const Strides& strides,
                     int64_t size) {
  Nest nest(shape, {&strides, 1});
  visit_size(size, [&]<class T>() {
    const T* in = static_cast<const T*>(from);
    nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
      copy_run(static_cast<T*>(to) + offsets[0], nest.inner_stride(0), in, 1, nest.inner());
      in += nest.inner();
    });
  });
}

}  // namespace headrace
