// Resize and Upsample: one pass per axis, since all their kernels are separable.
#include <cmath>
#include <cstring>

#include "ops/image/image.h"

namespace headrace {
namespace {

enum class Mode { kNearest, kLinear, kCubic };
enum class Coordinates {
  kHalfPixel,
  kHalfPixelSymmetric,
  kPytorchHalfPixel,
  kAlignCorners,
  kAsymmetric,
  kCropAndResize,
};
// By scale: floor where the axis grows, ceil where it shrinks, as before opset 11.
enum class Round { kPreferFloor, kPreferCeil, kFloor, kCeil, kByScale };

// One axis of one Request.
struct AxisPlan {
  int64_t in;
  int64_t out;
  double scale = 1;
  double roi_begin = 0;
  double roi_end = 1;
  int64_t taps = 2;
  bool moves = false;  // false: this axis stays as it is
};

struct ResizePlan {
  AxisPlan axes[kMaxRank];
};

class Resize : public Op {
 public:
  explicit Resize(const NodeSpec& spec);
  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;

 private:
  ResizePlan plan(InputViews inputs) const;
  void apply_policy(ResizePlan& plan, std::span<const int64_t> axes, size_t count) const;
  double source(const AxisPlan& axis, int64_t o) const;
  bool tap_weights(const AxisPlan& axis, int64_t o, int64_t* base, float* weights) const;
  void run_one(const OpRun& run, size_t r, std::byte* buffers[2], int64_t* bases,
               float* weights) const;
  void pass(const OpRun& run, const AxisPlan& axis, int64_t outer, int64_t inner, const void* in,
            void* out, const int64_t* bases, const float* weights, int64_t size) const;
  ConstTensorView input_of(InputViews inputs, int i) const {
    auto at = static_cast<size_t>(i);
    bool there = i >= 0 && at < inputs.size() && inputs[at].present() && inputs[at].elements() > 0;
    return there ? inputs[at] : ConstTensorView{};
  }

  Mode mode_ = Mode::kNearest;
  Coordinates coordinates_ = Coordinates::kHalfPixel;
  Round round_ = Round::kPreferFloor;
  std::string policy_;
  bool antialias_ = false;
  bool exclude_outside_ = false;
  double cubic_a_ = -0.75;
  float extrapolation_ = 0;
  std::vector<int64_t> axes_;
  std::vector<double> fixed_scales_;  // Upsample before opset 9
  int roi_input_ = -1;
  int scales_input_ = 1;
  int sizes_input_ = -1;
};

Resize::Resize(const NodeSpec& spec) {
  std::string mode = spec.string_or("mode", "nearest");
  mode_ = mode == "nearest" ? Mode::kNearest : mode == "cubic" ? Mode::kCubic : Mode::kLinear;
  if (mode != "nearest" && mode != "cubic" && mode != "linear" && mode != "bilinear") {
    spec.unsupported(str("mode '", mode, "'"));
  }
  if (mode_ != Mode::kNearest && spec.input_dtypes.at(0) != DType::kF32) unsupported_dtype(spec, 0);
  if (spec.op == "Upsample" || spec.opset < 11) {
    coordinates_ = Coordinates::kAsymmetric;
    round_ = Round::kByScale;
    fixed_scales_ = spec.floats("scales");
    return;
  }
  roi_input_ = 1;
  scales_input_ = 2;
  sizes_input_ = 3;
  std::string name = spec.string_or("coordinate_transformation_mode", "half_pixel");
  constexpr std::pair<std::string_view, Coordinates> kNames[] = {
      {"half_pixel", Coordinates::kHalfPixel},
      {"half_pixel_symmetric", Coordinates::kHalfPixelSymmetric},
      {"pytorch_half_pixel", Coordinates::kPytorchHalfPixel},
      {"align_corners", Coordinates::kAlignCorners},
      {"asymmetric", Coordinates::kAsymmetric},
      {"tf_crop_and_resize", Coordinates::kCropAndResize}};
  const auto* found =
      std::ranges::find(kNames, std::string_view(name), [](auto& p) { return p.first; });
  if (found == std::end(kNames)) spec.unsupported(str("coordinates '", name, "'"));
  coordinates_ = found->second;
  std::string nearest = spec.string_or("nearest_mode", "round_prefer_floor");
  round_ = nearest == "floor"               ? Round::kFloor
           : nearest == "ceil"              ? Round::kCeil
           : nearest == "round_prefer_ceil" ? Round::kPreferCeil
                                            : Round::kPreferFloor;
  policy_ = spec.string_or("keep_aspect_ratio_policy", "stretch");
  antialias_ = spec.int_or("antialias", 0) != 0 && mode_ != Mode::kNearest;
  exclude_outside_ = spec.int_or("exclude_outside", 0) != 0;
  cubic_a_ = spec.float_or("cubic_coeff_a", -0.75f);
  extrapolation_ = spec.float_or("extrapolation_value", 0);
  if (mode_ == Mode::kNearest &&
      (extrapolation_ != 0 || coordinates_ == Coordinates::kCropAndResize)) {
    spec.unsupported("nearest neighbours with extrapolation");
  }
  axes_ = spec.ints("axes");
}

ResizePlan Resize::plan(InputViews inputs) const {
  const Shape& from = inputs[0].shape;
  ResizePlan plan;
  int64_t order[kMaxRank];
  size_t count = axes_.empty() ? static_cast<size_t>(from.rank()) : axes_.size();
  if (count > kMaxRank) fail(ErrorKind::kShapeMismatch, "got ", count, " axes");
  for (int axis = 0; axis < from.rank(); ++axis) {
    plan.axes[axis].in = plan.axes[axis].out = from[axis];
  }
  ConstTensorView scales = input_of(inputs, scales_input_);
  ConstTensorView sizes = input_of(inputs, sizes_input_);
  ConstTensorView roi = input_of(inputs, roi_input_);
  auto fits = [&](const ConstTensorView& list, size_t n) {
    return !list.present() || list.elements() == static_cast<int64_t>(n);
  };
  bool given = scales.present() || sizes.present() || fixed_scales_.size() == count;
  if (!given || !fits(scales, count) || !fits(sizes, count) || !fits(roi, 2 * count)) {
    fail(ErrorKind::kShapeMismatch, "got ", scales.elements(), " scales and ", sizes.elements(),
         " sizes, expected ", count, " of one of them");
  }
  for (size_t i = 0; i < count; ++i) {
    order[i] = normalize_axis(axes_.empty() ? static_cast<int64_t>(i) : axes_[i], from.rank());
    AxisPlan& axis = plan.axes[order[i]];
    if (sizes.present()) {
      axis.out = sizes.as<int64_t>()[i];
      axis.scale = static_cast<double>(axis.out) / static_cast<double>(axis.in);
    } else {
      axis.scale = scales.present() ? static_cast<double>(scales.as<float>()[i]) : fixed_scales_[i];
      double out = static_cast<double>(axis.in) * axis.scale;
      axis.out = out >= 0 && out < 0x1p40 ? static_cast<int64_t>(out) : -1;
    }
    if (roi.present() && coordinates_ == Coordinates::kCropAndResize) {
      axis.roi_begin = roi.as<float>()[i];
      axis.roi_end = roi.as<float>()[count + i];
    }
  }
  if (sizes.present() && policy_ != "stretch") apply_policy(plan, {order, count}, count);
  for (int a = 0; a < from.rank(); ++a) {
    AxisPlan& axis = plan.axes[a];
    if (!(axis.scale > 0) || axis.out < 0 || (axis.in == 0 && axis.out > 0)) {
      fail(ErrorKind::kShapeMismatch, "got scale ", axis.scale, " along axis ", a, " of ",
           to_string(from), ", expected a positive one");
    }
    bool crops = coordinates_ == Coordinates::kCropAndResize && roi.present();
    axis.moves = axis.scale != 1 || axis.out != axis.in || crops;
    double shrink = antialias_ ? std::min(axis.scale, 1.0) : 1.0;
    double reach = mode_ == Mode::kCubic ? 2 : 1;
    constexpr double kMostTaps = 1e6;
    if (!(reach / shrink < kMostTaps)) {
      fail(ErrorKind::kShapeMismatch, "got scale ", axis.scale, ", expected a larger one");
    }
    axis.taps = 2 - 2 * (static_cast<int64_t>(std::floor(-reach / shrink)) + 1);
  }
  return plan;
}

void Resize::apply_policy(ResizePlan& plan, std::span<const int64_t> axes, size_t count) const {
  double scale = plan.axes[axes[0]].scale;
  for (size_t i = 1; i < count; ++i) {
    double next = plan.axes[axes[i]].scale;
    scale = policy_ == "not_larger" ? std::min(scale, next) : std::max(scale, next);
  }
  for (int64_t a : axes) {
    AxisPlan& axis = plan.axes[a];
    axis.scale = scale;
    double out = std::floor(scale * static_cast<double>(axis.in) + 0.5);
    axis.out = out >= 0 && out < 0x1p40 ? static_cast<int64_t>(out) : -1;
  }
}

// Where output o lies among the inputs.
double Resize::source(const AxisPlan& axis, int64_t o) const {
  auto x = static_cast<double>(o);
  auto in = static_cast<double>(axis.in);
  double out = axis.scale * in;
  switch (coordinates_) {
    case Coordinates::kAlignCorners:
      return out == 1 ? 0 : x * (in - 1) / (out - 1);
    case Coordinates::kAsymmetric:
      // As a float, the quotient of a rounded scale falls on the input it means: 4 / (4/3) on 3.
      return static_cast<float>(x / axis.scale);
    case Coordinates::kPytorchHalfPixel:
      return out == 1 ? -0.5 : (x + 0.5) / axis.scale - 0.5;
    case Coordinates::kCropAndResize: {
      double length = (axis.roi_end - axis.roi_begin) * (in - 1);
      return axis.roi_begin * (in - 1) + (out == 1 ? length / 2 : x * length / (out - 1));
    }
    case Coordinates::kHalfPixelSymmetric:
      return in / 2 * (1 - static_cast<double>(axis.out) / out) + (x + 0.5) / axis.scale - 0.5;
    case Coordinates::kHalfPixel:
      break;
  }
  return (x + 0.5) / axis.scale - 0.5;
}

// The first input that output o reads (clamp it and those after it), and the weights. False if o
// lies outside of what may be read.
bool Resize::tap_weights(const AxisPlan& axis, int64_t o, int64_t* base, float* weights) const {
  double x = source(axis, o);
  double below = std::floor(x);
  // An exact hit counts as the right one of a pair, so the left neighbour comes first.
  double ratio = x == below ? 1 : x - below;
  int64_t left = static_cast<int64_t>(below) - (x == below ? 1 : 0);
  int64_t first = left - (axis.taps / 2 - 1);
  *base = first;
  if (mode_ == Mode::kNearest) {
    bool right = ratio == 1 || round_ == Round::kCeil ||
                 (round_ == Round::kByScale && axis.scale < 1) ||
                 (round_ == Round::kPreferFloor && ratio > 0.5) ||
                 (round_ == Round::kPreferCeil && ratio >= 0.5);
    *base = std::clamp<int64_t>(left + (right ? 1 : 0), 0, axis.in - 1);
    return true;
  }
  if (coordinates_ == Coordinates::kCropAndResize &&
      (x < 0 || x > static_cast<double>(axis.in - 1))) {
    return false;
  }
  double shrink = antialias_ ? std::min(axis.scale, 1.0) : 1.0;
  double total = 0;
  for (int64_t t = 0; t < axis.taps; ++t) {
    double away = std::abs((static_cast<double>(first - left + t) - ratio) * shrink);
    double w = std::max(0.0, 1 - away);
    if (mode_ == Mode::kCubic) {
      double a = cubic_a_;
      w = away <= 1  ? ((a + 2) * away - (a + 3)) * away * away + 1
          : away < 2 ? ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
                     : 0;
    }
    bool outside = first + t < 0 || first + t >= axis.in;
    if (exclude_outside_ && outside) w = 0;
    weights[t] = static_cast<float>(w);
    total += w;
  }
  if (antialias_ || exclude_outside_) {
    for (int64_t t = 0; t < axis.taps; ++t) weights[t] = static_cast<float>(weights[t] / total);
  }
  return true;
}

void Resize::infer(InputViews inputs, std::span<Shape> outputs) const {
  ResizePlan resize = plan(inputs);
  outputs[0] = inputs[0].shape;
  for (int axis = 0; axis < outputs[0].rank(); ++axis) outputs[0][axis] = resize.axes[axis].out;
  require_sane(outputs[0]);
}

// One pass along one axis of a tensor seen as [outer, axis, inner].
void Resize::pass(const OpRun& run, const AxisPlan& axis, int64_t outer, int64_t inner,
                  const void* in, void* out, const int64_t* bases, const float* weights,
                  int64_t size) const {
  constexpr int64_t kMinElements = 4096;  // below, another thread costs more than it saves
  int64_t rows = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, inner));
  run.parallel_ranges(outer * axis.out, rows, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t o = row % axis.out;
      int64_t image = row / axis.out * axis.in;
      if (mode_ == Mode::kNearest) {
        std::memcpy(static_cast<std::byte*>(out) + row * inner * size,
                    static_cast<const std::byte*>(in) + (image + bases[o]) * inner * size,
                    static_cast<size_t>(inner * size));
        continue;
      }
      float* to = static_cast<float*>(out) + row * inner;
      const float* w = weights + o * axis.taps;
      bool outside = bases[o] == INT64_MIN;
      std::fill_n(to, inner, outside ? extrapolation_ : 0.0f);
      for (int64_t t = 0; !outside && t < axis.taps; ++t) {
        int64_t at = std::clamp<int64_t>(bases[o] + t, 0, axis.in - 1);
        const float* from = static_cast<const float*>(in) + (image + at) * inner;
        for (int64_t i = 0; i < inner; ++i) to[i] += w[t] * from[i];
      }
    }
  });
}

void Resize::run_one(const OpRun& run, size_t r, std::byte* buffers[2], int64_t* bases,
                     float* weights) const {
  ConstTensorView inputs[4];
  for (size_t i = 0; i < std::min<size_t>(run.inputs(), 4); ++i) {
    if (run.has_input(i)) inputs[i] = run.input(i).view(r);
  }
  ResizePlan resize = plan({inputs, std::min<size_t>(run.inputs(), 4)});
  TensorView out = run.output(0).view(r);
  if (out.elements() == 0) return;
  Shape shape = inputs[0].shape;
  int64_t size = size_of(out.dtype);
  int last = -1;
  for (int a = 0; a < shape.rank(); ++a) last = resize.axes[a].moves ? a : last;
  const void* from = inputs[0].data;
  if (last < 0) std::memcpy(out.data, from, static_cast<size_t>(out.bytes()));
  int next = 0;
  for (int a = 0; a <= last; ++a) {
    const AxisPlan& axis = resize.axes[a];
    if (!axis.moves) continue;
    for (int64_t o = 0; o < axis.out; ++o) {
      if (!tap_weights(axis, o, &bases[o], weights + o * axis.taps)) bases[o] = INT64_MIN;
    }
    void* to = a == last ? out.data : buffers[next];
    pass(run, axis, shape.elements(0, a), shape.elements(a + 1, shape.rank()), from, to, bases,
         weights, size);
    shape[a] = axis.out;
    from = to;
    next = 1 - next;
  }
}

void Resize::run(const OpRun& run) const {
  int64_t most_bytes = 0, most_out = 0, most_taps = 0;
  for (size_t r = 0; r < run.requests(); ++r) {
    ConstTensorView inputs[4];
    for (size_t i = 0; i < std::min<size_t>(run.inputs(), 4); ++i) {
      if (run.has_input(i)) inputs[i] = run.input(i).view(r);
    }
    ResizePlan resize = plan({inputs, std::min<size_t>(run.inputs(), 4)});
    Shape shape = inputs[0].shape;
    for (int a = 0; a < shape.rank(); ++a) {
      shape[a] = resize.axes[a].out;
      most_out = std::max(most_out, resize.axes[a].out);
      most_taps = std::max(most_taps, resize.axes[a].out * resize.axes[a].taps);
      most_bytes = std::max(most_bytes, shape.elements() * size_of(inputs[0].dtype));
    }
  }
  std::byte* buffers[2] = {run.scratch(most_bytes), run.scratch(most_bytes)};
  auto* bases = run.scratch_of<int64_t>(most_out);
  auto* weights = run.scratch_of<float>(most_taps);
  for (size_t r = 0; r < run.requests(); ++r) run_one(run, r, buffers, bases, weights);
}

std::unique_ptr<Op> make_resize(const NodeSpec& spec) {
  return std::make_unique<Resize>(spec);
}

}  // namespace

void register_resize(OpRegistry& registry) {
  registry.add("Resize", make_resize);
  registry.add("Upsample", make_resize);
}

}  // namespace headrace
