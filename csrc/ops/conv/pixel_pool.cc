// headrace.MaxPool and headrace.AveragePool: float32, channels last, whole pixels at a time. For
// the maximum of bytes see byte_pool.cc.
#include <algorithm>

#include "ops/conv/conv_kernels.h"
#include "ops/conv/pool.h"
#include "ops/conv/window.h"

namespace headrace {
namespace {

class PixelPool : public Op {
 public:
  PixelPool(const NodeSpec& spec, bool averages)
      : averages_(averages),
        window_(window_of(spec)),
        count_pads_(spec.int_or("count_include_pad", 0) != 0),
        kernels_(HEADRACE_KERNELS(spec.isa, conv_kernels)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Shape x = channels_first(inputs[0].shape, true);
    Windows w = windows_over(window_, x);
    outputs[0] = channels_last(output_shape(w, x, x[1]));
  }

  void run(const OpRun& run) const override;
  bool image_wise() const override { return true; }

 private:
  // One row of output pixels of one image.
  struct Row {
    const Windows& windows;
    int64_t channels;
    const float* x;  // the image
    int64_t depth, height;
    float* y;
  };
  void pool_row(const Row& row, const float** sources) const;

  bool averages_;
  WindowSpec window_;
  bool count_pads_;
  const ConvKernels& kernels_;
};

void PixelPool::run(const OpRun& run) const {
  int64_t taps = 1;
  for (int axis = 0; axis < kSpatial; ++axis) taps *= window_.kernel[axis];
  const float** sources = run.scratch_of<const float*>(taps * run.threads());
  for (size_t r = 0; r < run.requests(); ++r) {
    ConstTensorView x = run.input(0).view(r);
    Shape shape = channels_first(x.shape, true);
    Windows w = windows_over(window_, shape);
    float* y = run.output(0).view(r).as<float>();
    int64_t channels = shape[1];
    int64_t image_rows = w.out[0] * w.out[1];
    constexpr int64_t kRangeWork = 1 << 17;
    int64_t work = std::max<int64_t>(w.out[2] * channels * taps, 1);
    run.parallel_ranges(shape[0] * image_rows, kRangeWork / work,
                        [&](int64_t begin, int64_t end, int thread) {
                          for (int64_t i = begin; i < end; ++i) {
                            pool_row({.windows = w,
                                      .channels = channels,
                                      .x = x.as<float>() + i / image_rows * w.in_size() * channels,
                                      .depth = i / w.out[1] % w.out[0],
                                      .height = i % w.out[1],
                                      .y = y + i * w.out[2] * channels},
                                     sources + thread * taps);
                          }
                        });
  }
}

void PixelPool::pool_row(const Row& row, const float** sources) const {
  const Windows& w = row.windows;
  auto inside = [&](int axis, int64_t out) { return taps_inside(w, axis, out, w.in[axis]); };
  auto place = [&](int axis, int64_t out, int64_t tap) {
    return out * w.stride[axis] - w.pad_begin[axis] + tap * w.dilation[axis];
  };
  auto counted = [&](int axis, int64_t out) { return counted_taps(w, axis, out, count_pads_); };
  Taps deep = inside(0, row.depth);
  Taps high = inside(1, row.height);
  int64_t rows_counted = counted(0, row.depth) * counted(1, row.height);
  for (int64_t col = 0; col < w.out[2]; ++col) {
    Taps wide = inside(2, col);
    int64_t count = 0;
    for (int64_t kd = deep.begin; kd < deep.end; ++kd) {
      for (int64_t kh = high.begin; kh < high.end; ++kh) {
        int64_t line = place(0, row.depth, kd) * w.in[1] + place(1, row.height, kh);
        for (int64_t kw = wide.begin; kw < wide.end; ++kw) {
          sources[count++] = row.x + (line * w.in[2] + place(2, col, kw)) * row.channels;
        }
      }
    }
    float* y = row.y + col * row.channels;
    if (averages_) {
      auto divisor = static_cast<float>(rows_counted * counted(2, col));
      kernels_.average_of_pixels(sources, count, row.channels, divisor, y);
    } else {
      kernels_.max_of_pixels(sources, count, row.channels, y);
    }
  }
}

template <bool kAverages>
std::unique_ptr<Op> make_pixel_pool(const NodeSpec& spec) {
  if (spec.ints("kernel_shape").empty()) spec.invalid("got no kernel_shape");
  DType dtype = spec.input_dtypes[0];
  bool bytes = !kAverages && (dtype == DType::kU8 || dtype == DType::kI8);
  if (bytes && spec.string_or("layout", "") == "nhwc" && spec.output_dtypes.size() == 1) {
    return make_byte_pool(spec);
  }
  if (spec.string_or("layout", "") != "nhwc" || dtype != DType::kF32) {
    spec.unsupported(str("got layout '", spec.string_or("layout", ""), "' and dtype ",
                         name_of(dtype), ", expected nhwc and float32"));
  }
  if (spec.output_dtypes.size() > 1) spec.unsupported("got more than one output");
  return std::make_unique<PixelPool>(spec, kAverages);
}

}  // namespace

void register_pixel_pools(OpRegistry& registry) {
  registry.add("headrace.MaxPool", make_pixel_pool<false>);
  registry.add("headrace.AveragePool", make_pixel_pool<true>);
}

}  // namespace headrace
