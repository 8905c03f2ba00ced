// headrace.MaxPool of bytes: channels last, whole pixels at a time.
#include "ops/conv/byte_pool_kernels.h"
#include "ops/conv/pool.h"
#include "ops/conv/window.h"

namespace headrace {
namespace {

class BytePool : public Op {
 public:
  explicit BytePool(const NodeSpec& spec)
      : window_(window_of(spec)),
        flip_(spec.input_dtypes[0] == DType::kI8 ? 0x80 : 0),
        kernels_(HEADRACE_KERNELS(spec.isa, byte_pool_kernels)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Shape x = channels_first(inputs[0].shape, true);
    outputs[0] = channels_last(output_shape(windows_over(window_, x), x, x[1]));
  }

  void run(const OpRun& run) const override {
    int64_t taps = 1;
    for (int axis = 0; axis < kSpatial; ++axis) taps *= window_.kernel[axis];
    const uint8_t** sources = run.scratch_of<const uint8_t*>(taps * run.threads());
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView x = run.input(0).view(r);
      Shape shape = channels_first(x.shape, true);
      Windows w = windows_over(window_, shape);
      auto* y = run.output(0).view(r).as<uint8_t>();
      int64_t channels = shape[1];
      constexpr int64_t kRangeWork = 1 << 18;
      int64_t work = std::max<int64_t>(channels * taps, 1);
      run.parallel_ranges(
          shape[0] * w.out_size(), kRangeWork / work, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t i = begin; i < end; ++i) {
              const uint8_t** found = sources + thread * taps;
              int64_t image = i / w.out_size();
              const auto* from = x.as<uint8_t>() + image * w.in_size() * channels;
              int64_t count = find(w, i % w.out_size(), from, channels, found);
              kernels_.max_of_pixels(found, count, channels, flip_, y + i * channels);
            }
          });
    }
  }

 private:
  // Where the taps of Y's pixel `at` lie in the image `x`; returns how many there are.
  static int64_t find(const Windows& w, int64_t at, const uint8_t* x, int64_t channels,
                      const uint8_t** sources) {
    const int64_t out[kSpatial] = {at / (w.out[1] * w.out[2]), at / w.out[2] % w.out[1],
                                   at % w.out[2]};
    Taps taps[kSpatial];
    for (int axis = 0; axis < kSpatial; ++axis) {
      taps[axis] = taps_inside(w, axis, out[axis], w.in[axis]);
    }
    auto place = [&](int axis, int64_t tap) {
      return out[axis] * w.stride[axis] - w.pad_begin[axis] + tap * w.dilation[axis];
    };
    int64_t count = 0;
    for (int64_t kd = taps[0].begin; kd < taps[0].end; ++kd) {
      for (int64_t kh = taps[1].begin; kh < taps[1].end; ++kh) {
        int64_t line = place(0, kd) * w.in[1] + place(1, kh);
        for (int64_t kw = taps[2].begin; kw < taps[2].end; ++kw) {
          sources[count++] = x + (line * w.in[2] + place(2, kw)) * channels;
        }
      }
    }
    return count;
  }

  WindowSpec window_;
  uint8_t flip_;
  const BytePoolKernels& kernels_;
};

}  // namespace

std::unique_ptr<Op> make_byte_pool(const NodeSpec& spec) {
  return std::make_unique<BytePool>(spec);
}

}  // namespace headrace
