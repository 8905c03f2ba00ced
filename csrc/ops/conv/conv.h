// What Conv's ways of computing share.
#pragma once

#include <vector>

#include "ops/conv/conv_kernels.h"
#include "ops/conv/window.h"
#include "ops/linear/gemm.h"
#include "ops/op.h"

namespace headrace {

// The node: Y = act(conv(X, W) + B + residual).
struct ConvSpec {
  enum Input : size_t { kX, kWeight, kBias, kResidual };

  explicit ConvSpec(const NodeSpec& spec);

  WindowSpec window;
  int64_t groups = 1;
  Epilogue epilogue;  // activation only
  bool weight_packed = false;
  Shape weight_shape;  // of packed weights
};

// One Request's convolution. Lies in scratch memory: trivially copyable.
struct ConvProblem {
  Windows windows;
  int64_t images;
  int64_t groups;
  int64_t group_in;   // channels of X per group
  int64_t group_out;  // channels of Y per group
  const float* x;
  const float* weight;  // null if packed at plan time
  float* y;
  Epilogue epilogue;
  // How the work is spread; see Conv and Depthwise.
  int64_t first_task;
  int64_t row_ranges;
  int64_t col_ranges;
  const Word* packed;

  int64_t pixels() const { return windows.out_size(); }
  int64_t k() const { return group_in * windows.taps(); }
  // Y's channel, as the epilogue's rows see it.
  Epilogue epilogue_at(int64_t image, int64_t channel, int64_t pixel) const;
  float* y_at(int64_t image, int64_t channel, int64_t pixel) const {
    return y + (image * groups * group_out + channel) * pixels() + pixel;
  }
};

ConvProblem conv_problem(const ConvSpec& spec, const OpRun& run, size_t request);

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

void run_depthwise(const OpRun& run, const GemmKernels& gemm, const ConvKernels& kernels,
                   std::span<ConvProblem> problems);

}  // namespace headrace
