// What Conv's ways of computing share. All of them work channels last: X is [images, spatial...,
// channels], so that a pixel's channels lie together and nothing is re-ordered between ops.
#pragma once

#include <memory>
#include <span>

#include "ops/conv/conv_kernels.h"
#include "ops/conv/window.h"
#include "ops/linear/gemm.h"
#include "ops/op.h"

namespace headrace {

// The weights as ONNX has them: [groups * group_out, group_in, kernel...].
struct ConvWeight {
  const float* data = nullptr;
  int64_t groups = 1;
  int64_t group_in = 0;   // channels of X per group
  int64_t group_out = 0;  // channels of Y per group
  int64_t taps = 1;

  int64_t k() const { return group_in * taps; }
};

// The convolution of consecutive Requests of one shape. Lies in scratch memory: trivially copyable.
struct ConvProblem {
  Windows windows;
  int64_t images;
  ConvWeight weight;
  const Word* packed;  // the weights as the way packs them
  const void* x;       // floats, or bfloat16
  bool x_bf16;
  void* y;  // likewise
  bool y_bf16;
  Epilogue epilogue;  // bias and residual of the first image
  // How the work is spread; each way has its own use of them.
  int64_t first_task;
  int64_t row_blocks;
  int64_t col_ranges;

  int64_t channels_in() const { return weight.groups * weight.group_in; }
  int64_t channels_out() const { return weight.groups * weight.group_out; }
  // Pixels of Y over all images.
  int64_t rows() const { return images * windows.out_size(); }
  // What is left to do at Y's pixel `row`, from channel `col` on.
  Epilogue epilogue_at(int64_t row, int64_t col) const;
  const std::byte* x_at(int64_t row, int64_t col) const {
    return static_cast<const std::byte*>(x) + (row * channels_in() + col) * (x_bf16 ? 2 : 4);
  }
  std::byte* y_at(int64_t row, int64_t col) const {
    return static_cast<std::byte*>(y) + (row * channels_out() + col) * (y_bf16 ? 2 : 4);
  }
};

// One way of computing convolutions. Immutable.
class ConvWay {
 public:
  virtual ~ConvWay() = default;
  // Words that packed weights take, and floats that packing them needs besides.
  virtual int64_t packed_words(const ConvWeight& weight) const = 0;
  virtual int64_t packing_room(const ConvWeight& weight) const = 0;
  virtual void pack(const ConvWeight& weight, Word* packed, float* room) const = 0;
  virtual void run(const OpRun& run, std::span<ConvProblem> problems) const = 0;
};

// Any convolution, as matrix products over packed windows. X and Y may hold bfloat16 unless the
// precision is fp32.
std::unique_ptr<ConvWay> make_dense_way(Isa isa, Precision precision);
// One channel of X and one of Y per group; products and sums are floats, X and Y may hold bfloat16.
std::unique_ptr<ConvWay> make_depthwise_way(Isa isa);
// 3 x 3 kernels of stride 1 over floats, `tile` x `tile` pixels of Y at a time; see winograd.cc.
std::unique_ptr<ConvWay> make_winograd_way(Isa isa, int64_t tile);
// Whether it computes that convolution; `shape` is that of its weights.
bool fits_winograd(const ConvWeight& weight, const WindowSpec& window, const Shape& shape);

// Adds up `tasks(problem)` over problems into first_task. Returns the sum.
template <class F>
int64_t number_tasks(std::span<ConvProblem> problems, F tasks) {
  int64_t sum = 0;
  for (ConvProblem& problem : problems) {
    problem.first_task = sum;
    sum += tasks(problem);
  }
  return sum;
}
// The problem that `task` belongs to.
const ConvProblem& problem_of(std::span<const ConvProblem> problems, int64_t task);

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace headrace
