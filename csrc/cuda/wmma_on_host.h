// The part of nvcuda::wmma that our kernels use, for cuda_on_host.h: fragments of 16 x 16 x 16,
// spread over the 32 lanes of a warp, which all have to come to every call.
//
// Which element lies with which lane is left open by CUDA; here lane l holds elements 8 l to 8 l +
// 7 in row-major order. Products are added to the accumulator one by one in the order of k; a
// tensor core adds several at once, so that its bits differ.
#pragma once

#include "cuda/cuda_on_host.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  static constexpr int num_elements = 8;
  T x[num_elements];
};

namespace detail {

using headrace::on_host::Block;

constexpr unsigned kAll = 0xffffffffu;

inline int first_element() {
  return static_cast<int>(Block::current().lane_in_warp()) * 8;
}

template <class Layout>
int place(int row, int col, unsigned stride) {
  if constexpr (std::is_same_v<Layout, col_major>) {
    return col * static_cast<int>(stride) + row;
  } else {
    return row * static_cast<int>(stride) + col;
  }
}

// Real loads want 32-byte aligned tiles whose rows are apart by a multiple of 16 bytes.
template <class T>
void check_tile(const T* from, unsigned stride, const std::source_location& at) {
  bool aligned = reinterpret_cast<uintptr_t>(from) % 32 == 0 && stride * sizeof(T) % 16 == 0;
  if (!aligned) {
    headrace::fail(headrace::ErrorKind::kExecution, at.file_name(), ":", at.line(),
                   ": a fragment's tile is not aligned to 32 bytes, or its stride not to 16");
  }
}

}  // namespace detail

template <class Fragment, class T>
void fill_fragment(Fragment& f, T value) {
  for (auto& x : f.x) x = value;
}

template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* from, unsigned stride,
                      std::source_location at = std::source_location::current()) {
  detail::check_tile(from, stride, at);
  __syncwarp(detail::kAll, at);
  for (int i = 0; i < 8; ++i) {
    int element = detail::first_element() + i;
    f.x[i] = from[detail::place<Layout>(element / 16, element % 16, stride)];
  }
}

template <class T>
void store_matrix_sync(T* to, const fragment<accumulator, 16, 16, 16, T>& f, unsigned stride,
                       layout_t layout, std::source_location at = std::source_location::current()) {
  detail::check_tile(to, stride, at);
  __syncwarp(detail::kAll, at);
  for (int i = 0; i < 8; ++i) {
    int element = detail::first_element() + i;
    int at_row = layout == mem_row_major
                     ? detail::place<row_major>(element / 16, element % 16, stride)
                     : detail::place<col_major>(element / 16, element % 16, stride);
    to[at_row] = f.x[i];
  }
}

template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c,
              std::source_location at = std::source_location::current()) {
  using A = fragment<matrix_a, 16, 16, 16, T, LayoutA>;
  using B = fragment<matrix_b, 16, 16, 16, T, LayoutB>;
  auto& block = detail::Block::current();
  struct Operands {
    const A* a;
    const B* b;
  } own{&a, &b};
  block.publish(detail::kAll, std::bit_cast<uint64_t>(&own), at);
  const Operands* of[32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    of[lane] = std::bit_cast<const Operands*>(block.published(lane, detail::kAll, at));
  }
  float sums[8];
  for (int i = 0; i < 8; ++i) {
    int row = (detail::first_element() + i) / 16;
    int col = (detail::first_element() + i) % 16;
    sums[i] = c.x[i];
    for (int k = 0; k < 16; ++k) {
      int in_a = row * 16 + k;
      int in_b = k * 16 + col;
      sums[i] += static_cast<float>(of[in_a / 8]->a->x[in_a % 8]) *
                 static_cast<float>(of[in_b / 8]->b->x[in_b % 8]);
    }
  }
  // Nobody may touch its operands before all have read them.
  __syncwarp(detail::kAll, at);
  std::copy_n(sums, 8, d.x);
}

}  // namespace nvcuda::wmma
