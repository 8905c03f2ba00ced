// ConvTranspose in float32: what each tap makes of the whole image, as one matrix product per
// group, then every product is added to the pixel it falls on, tap after tap.
#include "ops/conv/conv_transpose.h"

#include <algorithm>

#include "ops/conv/window.h"
#include "ops/linear/gemm.h"

namespace headrace {
namespace {

enum Input : size_t { kX, kWeight, kBias };

class ConvTranspose : public Op {
 public:
  explicit ConvTranspose(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, gemm_kernels)),
        window_(window_of(spec)),
        groups_(spec.int_or("group", 1)),
        output_padding_(spec.ints("output_padding")),
        output_shape_(spec.ints("output_shape")) {
    if (groups_ < 1) spec.invalid(str("got group ", groups_, ", expected at least 1"));
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[kX].shape;
    const Shape& weight = inputs[kWeight].shape;
    if (weight.rank() != x.rank() || x.rank() < 3 || weight[0] != x[1] || x[1] % groups_ != 0) {
      fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), " and weights of shape ",
           to_string(weight), " in ", groups_, " groups");
    }
    int64_t channels = weight[1] * groups_;
    outputs[0] = output_shape(windows(x, weight), x, channels);
    bool has_bias = inputs.size() > kBias && inputs[kBias].present();
    if (has_bias && inputs[kBias].shape != Shape{channels}) {
      fail(ErrorKind::kShapeMismatch, "got a bias of shape ", to_string(inputs[kBias].shape),
           ", expected [", channels, "]");
    }
  }

  void run(const OpRun& run) const override {
    int64_t size = 0;
    for (size_t r = 0; r < run.requests(); ++r) size += products_size(run, r);
    float* products = run.scratch_of<float>(size);
    auto request_products = [&](size_t r) {
      float* c = products;
      for (size_t before = 0; before < r; ++before) c += products_size(run, before);
      return products_of(run, r, c);
    };
    gemm_dynamic(run, kernels_, request_products, 1.0f, false);
    const float* from = products;
    for (size_t r = 0; r < run.requests(); ++r) {
      gather(run, r, from);
      from += products_size(run, r);
    }
  }

 private:
  // `in` is X's, `out` is Y's.
  Windows windows(const Shape& x, const Shape& weight) const;

  int64_t products_size(const OpRun& run, size_t r) const {
    const Shape& x = run.input(kX).shape(r);
    return x[0] * groups_ * run.input(kWeight).shape(r).elements(1, x.rank()) *
           x.elements(2, x.rank());
  }

  DynamicProducts products_of(const OpRun& run, size_t r, float* c) const {
    ConstTensorView x = run.input(kX).view(r);
    ConstTensorView weight = run.input(kWeight).view(r);
    int64_t pixels = x.shape.elements(2, x.shape.rank());
    DynamicProducts p;
    p.c = c;
    p.rows = weight.shape.elements(1, weight.shape.rank());  // channels * taps
    p.k = x.shape[1] / groups_;
    p.cols = pixels;
    p.a = {weight.as<float>(), p.rows, true};
    p.b = {x.as<float>(), pixels};
    p.batch = {x.shape[0], groups_};
    p.a_steps[1] = p.k * p.rows;
    p.b_steps[0] = x.shape[1] * pixels;
    p.b_steps[1] = p.k * pixels;
    return p;
  }

  // Adds the products of Request `r` up, channel by channel.
  void gather(const OpRun& run, size_t r, const float* products) const {
    const Shape& x = run.input(kX).shape(r);
    Windows w = windows(x, run.input(kWeight).shape(r));
    TensorView y = run.output(0).view(r);
    const float* bias = nullptr;
    if (run.has_input(kBias)) bias = run.input(kBias).view(r).as<float>();
    int64_t channels = y.shape[1];
    int64_t step = w.taps() * w.in_size();
    constexpr int64_t kRangeWork = 1 << 16;
    run.parallel_ranges(y.shape[0] * channels, kRangeWork / std::max<int64_t>(step, 1),
                        [&](int64_t begin, int64_t end, int) {
                          for (int64_t i = begin; i < end; ++i) {
                            float* plane = y.as<float>() + i * w.out_size();
                            std::fill_n(plane, w.out_size(), bias ? bias[i % channels] : 0.0f);
                            add_taps(w, products + i * step, plane);
                          }
                        });
  }

  static void add_taps(const Windows& w, const float* products, float* plane);

  const GemmKernels& kernels_;
  WindowSpec window_;
  int64_t groups_;
  std::vector<int64_t> output_padding_;
  std::vector<int64_t> output_shape_;
};

Windows ConvTranspose::windows(const Shape& x, const Shape& weight) const {
  int rank = x.rank() - 2;
  auto fits = [&](size_t n) { return n == 0 || static_cast<int>(n) == rank; };
  if (!fits(output_padding_.size()) || !fits(output_shape_.size())) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x),
         ", expected as many spatial axes as output_shape and output_padding have");
  }
  // Checks ranks and fills everything but the output in.
  WindowSpec spec = window_;
  spec.auto_pad = WindowSpec::AutoPad::kNotSet;
  Windows w = windows_over(spec, x, weight.dims().subspan(2));
  bool same = window_.auto_pad == WindowSpec::AutoPad::kSameUpper ||
              window_.auto_pad == WindowSpec::AutoPad::kSameLower;
  for (int i = 0; i < rank; ++i) {
    int axis = kSpatial - rank + i;
    auto at = static_cast<size_t>(i);
    int64_t full = w.stride[axis] * (w.in[axis] - 1) + (w.kernel[axis] - 1) * w.dilation[axis] + 1;
    if (!output_padding_.empty()) full += output_padding_[at];
    if (output_shape_.empty() && !same) {
      w.out[axis] = std::max<int64_t>(full - w.pad_begin[axis] - w.pad_end[axis], 0);
      continue;
    }
    w.out[axis] = output_shape_.empty() ? w.in[axis] * w.stride[axis] : output_shape_[at];
    int64_t total = std::max<int64_t>(full - w.out[axis], 0);
    bool upper = window_.auto_pad == WindowSpec::AutoPad::kSameUpper;
    w.pad_begin[axis] = upper ? total / 2 : total - total / 2;
    w.pad_end[axis] = total - w.pad_begin[axis];
  }
  return w;
}

void ConvTranspose::add_taps(const Windows& w, const float* products, float* plane) {
  for (int64_t tap = 0; tap < w.taps(); ++tap) {
    const int64_t shift[] = {tap / (w.kernel[1] * w.kernel[2]) * w.dilation[0] - w.pad_begin[0],
                             tap / w.kernel[2] % w.kernel[1] * w.dilation[1] - w.pad_begin[1],
                             tap % w.kernel[2] * w.dilation[2] - w.pad_begin[2]};
    for (int64_t d = 0; d < w.in[0]; ++d) {
      for (int64_t h = 0; h < w.in[1]; ++h, products += w.in[2]) {
        int64_t to_d = d * w.stride[0] + shift[0];
        int64_t to_h = h * w.stride[1] + shift[1];
        if (to_d < 0 || to_d >= w.out[0] || to_h < 0 || to_h >= w.out[1]) continue;
        float* row = plane + (to_d * w.out[1] + to_h) * w.out[2];
        for (int64_t i = 0; i < w.in[2]; ++i) {
          int64_t to = i * w.stride[2] + shift[2];
          if (to >= 0 && to < w.out[2]) row[to] += products[i];
        }
      }
    }
  }
}

}  // namespace

std::unique_ptr<Op> make_conv_transpose(const NodeSpec& spec) {
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && spec.input_dtypes[i] != DType::kF32) {
      spec.unsupported(
          str("got input ", i, " of dtype ", name_of(spec.input_dtypes[i]), ", expected float32"));
    }
  }
  return std::make_unique<ConvTranspose>(spec);
}

}  // namespace headrace
