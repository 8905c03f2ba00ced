// Convolutions whose groups have one input channel each: no matrix to speak of, so every channel
// is convolved where it lies.
#include <algorithm>

#include "ops/conv/conv.h"

namespace headrace {

void run_depthwise(const OpRun& run, const GemmKernels& gemm, const ConvKernels& kernels,
                   std::span<ConvProblem> problems) {
  int64_t planes = number_tasks(problems, [](ConvProblem& p) {
    return p.pixels() == 0 ? 0 : p.images * p.groups * p.group_out;
  });
  int64_t pixels = 0;
  int64_t work = 0;
  for (const ConvProblem& p : problems) {
    pixels = std::max(pixels, p.pixels());
    work = std::max(work, p.pixels() * p.windows.taps());
  }
  // A plane goes through the epilogue from here: Y may hold the residual.
  float* scratch = run.scratch_of<float>(pixels * run.threads());
  constexpr int64_t kRangeWork = 1 << 17;
  int64_t min_planes = kRangeWork / std::max<int64_t>(work, 1);
  run.parallel_ranges(planes, min_planes, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const ConvProblem& p = problem_of(problems, plane);
      int64_t channels = p.groups * p.group_out;
      int64_t image = (plane - p.first_task) / channels;
      int64_t channel = (plane - p.first_task) % channels;
      int64_t from = image * p.groups + channel / p.group_out;
      float* products = scratch + thread * pixels;
      kernels.depthwise({.x = p.x + from * p.windows.in_size(),
                         .kernel = p.weight + channel * p.windows.taps(),
                         .y = products,
                         .windows = &p.windows});
      gemm.finish({.rows = 1,
                   .cols = p.pixels(),
                   .c = p.y_at(image, channel, 0),
                   .c_stride = p.pixels(),
                   .epilogue = p.epilogue_at(image, channel, 0)},
                  products, p.pixels());
    }
  });
}

}  // namespace headrace
