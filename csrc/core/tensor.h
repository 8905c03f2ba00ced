// Shapes and views of dense, row-major tensors. Views never own memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

namespace headrace {

inline constexpr int kMaxRank = 8;

// Dims held inline, so that making and copying shapes never touches the heap.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) {
    for (int64_t dim : dims) push_back(dim);
  }

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[axis]; }
  int64_t& operator[](int axis) { return dims_[axis]; }
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }

  void push_back(int64_t dim) {
    if (rank_ == kMaxRank) {
      fail(ErrorKind::kUnsupportedOp, "got a tensor of more than ", kMaxRank,
           " dims, expected at most that");
    }
    dims_[rank_++] = dim;
  }

  // Product of all dims; 1 for a scalar.
  int64_t elements() const { return elements(0, rank_); }
  // Product of dims [begin, end).
  int64_t elements(int begin, int end) const {
    int64_t product = 1;
    for (int i = begin; i < end; ++i) product *= dims_[i];
    return product;
  }

  friend bool operator==(const Shape& a, const Shape& b) {
    return std::ranges::equal(a.dims(), b.dims());
  }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// "[2, 3]", for messages.
inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

// A read-only tensor. dtype kNone with null data stands for an absent optional input.
struct ConstTensorView {
  DType dtype = DType::kNone;
  Shape shape;
  const void* data = nullptr;

  bool present() const { return dtype != DType::kNone; }
  int64_t elements() const { return shape.elements(); }
  int64_t bytes() const { return elements() * size_of(dtype); }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  // The elements as a span; T must match dtype.
  template <class T>
  std::span<const T> span() const {
    return {as<T>(), static_cast<size_t>(elements())};
  }
};

struct TensorView {
  DType dtype = DType::kNone;
  Shape shape;
  void* data = nullptr;

  int64_t elements() const { return shape.elements(); }
  int64_t bytes() const { return elements() * size_of(dtype); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  std::span<T> span() const {
    return {as<T>(), static_cast<size_t>(elements())};
  }
  operator ConstTensorView() const { return {dtype, shape, data}; }
};

}  // namespace headrace
