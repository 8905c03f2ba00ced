// Quantised convolutions of one channel of X and one of Y per group: each row of pixels is
// convolved where it lies.
#include <algorithm>

#include "ops/conv/static_conv.h"

namespace headrace {

HEADRACE_DECLARE_KERNELS(ByteDepthwiseKernels, byte_depthwise)
#if defined(HEADRACE_KERNELS_X86)
namespace avx512_vnni {
extern const ByteDepthwiseKernels byte_depthwise;
}
#endif

const ByteDepthwiseKernels& byte_depthwise_for(Isa isa, [[maybe_unused]] bool wide) {
#if defined(HEADRACE_KERNELS_X86)
  if (isa >= Isa::kAvx512Vnni && !wide) return avx512_vnni::byte_depthwise;
#endif
  return HEADRACE_KERNELS(isa, byte_depthwise);
}

namespace {

// Multiply-adds worth a task of their own.
constexpr int64_t kDepthwiseTaskWork = 1 << 16;

}  // namespace

void QuantizedConv::run_depthwise(const OpRun& run, std::span<StaticProblem> problems) const {
  auto* paddings = run.scratch_of<uint8_t>(channels_in());
  std::fill_n(paddings, channels_in(), padding());
  int64_t room = taps() * kByteDepthwisePixels;
  const uint8_t** sources = run.scratch_of<const uint8_t*>(room * run.threads());
  for (const StaticProblem& p : problems) {
    int64_t rows = p.images * p.windows.out[0] * p.windows.out[1];
    int64_t work = std::max<int64_t>(p.windows.out[2] * taps() * groups_, 1);
    run.parallel_ranges(rows, kDepthwiseTaskWork / work,
                        [&](int64_t begin, int64_t end, int thread) {
                          run_depthwise_rows(p, begin, end, paddings, sources + thread * room);
                        });
  }
}

void QuantizedConv::run_depthwise_rows(const StaticProblem& p, int64_t begin, int64_t end,
                                       const uint8_t* paddings, const uint8_t** sources) const {
  const Windows& w = p.windows;
  StaticFinish finish = finish_of(p);
  for (int64_t row = begin; row < end; ++row) {
    int64_t pixel = row * w.out[2];
    depthwise_kernels_.run({.x = p.x + row / (w.out[0] * w.out[1]) * w.in_size() * groups_,
                            .weights = packed_.data(),
                            .paddings = paddings,
                            .y = p.y + pixel * groups_ * (finish.floats ? 4 : 1),
                            .channels = groups_,
                            .windows = &w,
                            .depth = row / w.out[1] % w.out[0],
                            .height = row % w.out[1],
                            .sources = sources,
                            .flip = quantization_.x().flip,
                            .finish = finish.at(pixel, 0)});
  }
}

}  // namespace headrace
