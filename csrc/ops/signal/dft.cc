// DFT by its definition, which is quadratic in the length.
#include <cmath>
#include <numbers>

#include "ops/signal/signal.h"

namespace headrace {
namespace {

class Dft : public PerRequestOp {
 public:
  explicit Dft(const NodeSpec& spec)
      : one_sided_(spec.int_or("onesided", 0) != 0),
        axis_(spec.int_or("axis", spec.opset < 20 ? 1 : -2)) {
    if (spec.input_dtypes.at(0) != DType::kF32) unsupported_dtype(spec, 0);
    for (size_t i = 1; i < spec.inputs(); ++i) {
      DType dtype = spec.input_dtypes[i];
      if (spec.has_input(i) && dtype != DType::kI64 && dtype != DType::kI32)
        unsupported_dtype(spec, i);
    }
    if (spec.int_or("inverse", 0) != 0) spec.unsupported("no kernel for the inverse");
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    if (x.rank() < 2 || x[x.rank() - 1] < 1 || x[x.rank() - 1] > 2) {
      fail(ErrorKind::kShapeMismatch, "got a signal of shape ", to_string(x),
           ", expected real or complex numbers as the last axis, of length 1 or 2");
    }
    for (size_t i = 1; i < inputs.size(); ++i) {
      if (!inputs[i].present() || inputs[i].elements() == 1) continue;
      fail(ErrorKind::kShapeMismatch, "got input ", i, " of shape ", to_string(inputs[i].shape),
           ", expected a scalar");
    }
    int axis = axis_of(inputs);
    int64_t length = length_of(inputs, axis);
    if (axis == x.rank() - 1 || length < 1 || length > INT32_MAX) {
      fail(ErrorKind::kShapeMismatch, "got a transform of length ", length, " along axis ", axis,
           ", expected at least 1, and an axis before the last");
    }
    outputs[0] = x;
    outputs[0][axis] = one_sided_ ? length / 2 + 1 : length;
    outputs[0][x.rank() - 1] = 2;
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& out = outputs[0].shape;
    int axis = axis_of(inputs);
    int64_t length = length_of(inputs, axis);
    int64_t used = std::min(length, x[axis]);
    int64_t parts = x[x.rank() - 1];
    int64_t inner = x.elements(axis + 1, x.rank() - 1);
    double turn = -2 * std::numbers::pi / static_cast<double>(length);
    const float* from = inputs[0].as<float>();
    float* to = outputs[0].as<float>();
    for (int64_t o = 0; o < x.elements(0, axis); ++o) {
      for (int64_t k = 0; k < out[axis]; ++k) {
        for (int64_t i = 0; i < inner; ++i) {
          double real = 0, imaginary = 0;
          for (int64_t n = 0; n < used; ++n) {
            const float* at = from + ((o * x[axis] + n) * inner + i) * parts;
            double re = at[0], im = parts == 2 ? at[1] : 0;
            double angle = turn * static_cast<double>(k * n % length);
            double c = std::cos(angle), s = std::sin(angle);
            real += re * c - im * s;
            imaginary += re * s + im * c;
          }
          *to++ = static_cast<float>(real);
          *to++ = static_cast<float>(imaginary);
        }
      }
    }
  }

 private:
  int axis_of(InputViews inputs) const {
    bool given = inputs.size() > 2 && inputs[2].present();
    return normalize_axis(given ? int_at(inputs[2], 0) : axis_, inputs[0].shape.rank());
  }
  static int64_t length_of(InputViews inputs, int axis) {
    bool given = inputs.size() > 1 && inputs[1].present();
    return given ? int_at(inputs[1], 0) : inputs[0].shape[axis];
  }

  bool one_sided_;
  int64_t axis_;
};

// Overlapping windows of a signal, each transformed.
class Stft : public PerRequestOp {
 public:
  explicit Stft(const NodeSpec& spec) : one_sided_(spec.int_or("onesided", 1) != 0) {
    if (spec.input_dtypes.at(0) != DType::kF32) unsupported_dtype(spec, 0);
    if (spec.has_input(2) && spec.input_dtypes[2] != DType::kF32) unsupported_dtype(spec, 2);
    if (!spec.has_input(2) && !spec.has_input(3))
      spec.invalid("got neither window nor frame_length");
    for (size_t i : {1u, 3u}) {
      if (!spec.has_input(i)) continue;
      DType dtype = spec.input_dtypes[i];
      if (dtype != DType::kI64 && dtype != DType::kI32) unsupported_dtype(spec, i);
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    if (inputs.size() > 3 && inputs[3].present() && inputs[3].elements() != 1) {
      fail(ErrorKind::kShapeMismatch, "got frame_length of shape ", to_string(inputs[3].shape),
           ", expected a scalar");
    }
    int64_t step = inputs[1].elements() == 1 ? int_at(inputs[1], 0) : 0;
    int64_t length = length_of(inputs);
    bool complex = x.rank() == 3 && x[2] == 2;
    bool fits = (x.rank() == 2 || complex || (x.rank() == 3 && x[2] == 1)) && step > 0 &&
                length > 0 && x[1] >= length &&
                (!has_window(inputs) || inputs[2].elements() == length) && !(complex && one_sided_);
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got a signal of shape ", to_string(x), ", step ", step,
           " and frames of ", length, ", expected [N, samples] or [N, samples, 1 or 2], frames ",
           "that fit, and two-sided spectra of complex signals");
    }
    outputs[0] = {x[0], (x[1] - length) / step + 1, one_sided_ ? length / 2 + 1 : length, 2};
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& out = outputs[0].shape;
    int64_t parts = x.rank() == 3 ? x[2] : 1;
    int64_t step = int_at(inputs[1], 0);
    int64_t length = length_of(inputs);
    const float* window = has_window(inputs) ? inputs[2].as<float>() : nullptr;
    float* to = outputs[0].as<float>();
    for (int64_t b = 0; b < out[0]; ++b) {
      for (int64_t frame = 0; frame < out[1]; ++frame) {
        const float* from = inputs[0].as<float>() + (b * x[1] + frame * step) * parts;
        for (int64_t k = 0; k < out[2]; ++k) {
          double real = 0, imaginary = 0;
          for (int64_t n = 0; n < length; ++n) {
            double w = window == nullptr ? 1 : window[n];
            double re = from[n * parts] * w, im = parts == 2 ? from[n * parts + 1] * w : 0;
            double angle = -2 * std::numbers::pi * static_cast<double>(k * n % length) /
                           static_cast<double>(length);
            double c = std::cos(angle), s = std::sin(angle);
            real += re * c - im * s;
            imaginary += re * s + im * c;
          }
          *to++ = static_cast<float>(real);
          *to++ = static_cast<float>(imaginary);
        }
      }
    }
  }

 private:
  static bool has_window(InputViews inputs) { return inputs.size() > 2 && inputs[2].present(); }
  static int64_t length_of(InputViews inputs) {
    bool given = inputs.size() > 3 && inputs[3].present();
    return given ? int_at(inputs[3], 0) : inputs[2].elements();
  }
  bool one_sided_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_dft(OpRegistry& registry) {
  registry.add("DFT", make<Dft>);
  registry.add("STFT", make<Stft>);
}

}  // namespace headrace
