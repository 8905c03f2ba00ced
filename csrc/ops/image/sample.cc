// GridSample and AffineGrid.
#include <cmath>

#include "ops/image/image.h"

namespace headrace {
namespace {

constexpr int kMaxSpatial = 3;

enum class Mode { kNearest, kLinear, kCubic };
enum class Padding { kZeros, kBorder, kReflection };

// Mirrors x at the borders until it lies between them.
double reflect(double x, double low, double high) {
  double range = high - low;
  if (x >= low && x <= high) return x;
  if (!(range > 0)) return low;
  double away = x < low ? low - x : x - high;
  if (!std::isfinite(away)) return low;
  double times = std::floor(away / range);
  double rest = away - times * range;
  bool even = std::fmod(times, 2) == 0;
  return (x < low) == even ? low + rest : high - rest;
}

// What one point reads along one axis.
struct Taps {
  int count;
  int64_t index[4];  // -1: zero
  float weight[4];
};

class GridSample : public PerRequestOp {
 public:
  explicit GridSample(const NodeSpec& spec) : align_(spec.int_or("align_corners", 0) != 0) {
    require_inputs(spec, 2);
    for (size_t i = 0; i < 2; ++i) {
      if (spec.input_dtypes[i] != DType::kF32) unsupported_dtype(spec, i);
    }
    std::string mode = spec.string_or("mode", spec.opset < 20 ? "bilinear" : "linear");
    std::string padding = spec.string_or("padding_mode", "zeros");
    if (mode == "nearest") {
      mode_ = Mode::kNearest;
    } else if (mode == "linear" || mode == "bilinear") {
      mode_ = Mode::kLinear;
    } else if (mode == "cubic" || mode == "bicubic") {
      mode_ = Mode::kCubic;
    } else {
      spec.unsupported(str("mode '", mode, "'"));
    }
    padding_ = padding == "zeros"    ? Padding::kZeros
               : padding == "border" ? Padding::kBorder
                                     : Padding::kReflection;
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& grid = inputs[1].shape;
    int spatial = x.rank() - 2;
    bool fits = spatial >= 1 && spatial <= kMaxSpatial && grid.rank() == x.rank() &&
                grid[0] == x[0] && grid[grid.rank() - 1] == spatial;
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got images of shape ", to_string(x), " and a grid of ",
           to_string(grid), ", expected [N, C, ...] of 1 to ", kMaxSpatial,
           " spatial dims and [N, ..., dims]");
    }
    outputs[0] = {x[0], x[1]};
    for (int i = 1; i + 1 < grid.rank(); ++i) outputs[0].push_back(grid[i]);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& x = inputs[0].shape;
    int spatial = x.rank() - 2;
    int64_t points = outputs[0].shape.elements(2, x.rank());
    int64_t pixels = x.elements(2, x.rank());
    const float* grid = inputs[1].as<float>();
    for (int64_t n = 0; n < x[0]; ++n) {
      for (int64_t p = 0; p < points; ++p, grid += spatial) {
        Taps taps[kMaxRank];  // the compiler cannot see that kMaxSpatial would do
        // The grid names the last axis first.
        for (int d = 0; d < spatial; ++d) taps[d] = taps_at(grid[spatial - 1 - d], x[2 + d]);
        for (int64_t c = 0; c < x[1]; ++c) {
          const float* image = inputs[0].as<float>() + (n * x[1] + c) * pixels;
          outputs[0].as<float>()[(n * x[1] + c) * points + p] =
              sample(image, x.dims().subspan(2), taps, 0, 0);
        }
      }
    }
  }

 private:
  Taps taps_at(float normal, int64_t length) const {
    auto size = static_cast<float>(length);
    float at = align_ ? (normal + 1) / 2 * (size - 1) : ((normal + 1) * size - 1) / 2;
    double low = align_ ? 0 : -0.5;
    double high = static_cast<double>(length) - (align_ ? 1 : 0.5);
    if (mode_ == Mode::kNearest) at = std::rint(at);
    if (at < low || at > high) {
      if (padding_ == Padding::kBorder) at = std::clamp(at, 0.0f, size - 1);
      if (padding_ == Padding::kReflection) at = static_cast<float>(reflect(at, low, high));
    }
    constexpr float kFar = 1e9f;  // keeps NaN and huge coordinates convertible; they read zeros
    if (!(std::abs(at) < kFar)) at = -kFar;
    auto below = static_cast<int64_t>(std::floor(at));
    float ratio = at - static_cast<float>(below);
    Taps taps{};
    if (mode_ == Mode::kNearest) {
      taps = {1, {static_cast<int64_t>(at)}, {1}};
    } else if (mode_ == Mode::kLinear) {
      taps = {2, {below, below + 1}, {1 - ratio, ratio}};
    } else {
      taps = {4, {below - 1, below, below + 1, below + 2}, {}};
      cubic_weights(ratio, -0.75f, taps.weight);
    }
    for (int t = 0; t < taps.count; ++t) {
      int64_t& i = taps.index[t];
      if (i >= 0 && i < length) continue;
      if (padding_ == Padding::kZeros) i = -1;
      if (padding_ == Padding::kBorder) i = std::clamp<int64_t>(i, 0, length - 1);
      if (padding_ == Padding::kReflection) {
        auto mirrored = static_cast<int64_t>(reflect(static_cast<double>(i), low, high));
        i = std::clamp<int64_t>(mirrored, 0, length - 1);
      }
    }
    return taps;
  }

  static float sample(const float* image, std::span<const int64_t> dims, const Taps* taps,
                      size_t axis, int64_t base) {
    float total = 0;
    for (int t = 0; t < taps[axis].count; ++t) {
      int64_t i = taps[axis].index[t];
      float value = 0;
      if (i >= 0) {
        int64_t at = base * dims[axis] + i;
        value = axis + 1 == dims.size() ? image[at] : sample(image, dims, taps, axis + 1, at);
      }
      total += taps[axis].weight[t] * value;
    }
    return total;
  }

  bool align_;
  Mode mode_ = Mode::kLinear;
  Padding padding_ = Padding::kZeros;
};

class AffineGrid : public PerRequestOp {
 public:
  explicit AffineGrid(const NodeSpec& spec) : align_(spec.int_or("align_corners", 0) != 0) {
    require_inputs(spec, 2);
    if (spec.input_dtypes[0] != DType::kF32) unsupported_dtype(spec, 0);
    if (spec.input_dtypes[1] != DType::kI64) unsupported_dtype(spec, 1);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& theta = inputs[0].shape;
    int64_t spatial = inputs[1].elements() - 2;
    bool fits = (spatial == 2 || spatial == 3) && theta.rank() == 3 &&
                theta == Shape{theta[0], spatial, spatial + 1} &&
                inputs[1].as<int64_t>()[0] == theta[0];
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got transformations of shape ", to_string(theta), " and ",
           inputs[1].elements(), " sizes, expected [N, 2, 3] and 4 or [N, 3, 4] and 5");
    }
    outputs[0] = {theta[0]};
    for (int64_t i = 0; i < spatial; ++i) outputs[0].push_back(inputs[1].as<int64_t>()[2 + i]);
    outputs[0].push_back(spatial);
    require_sane(outputs[0]);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& out = outputs[0].shape;
    int spatial = out.rank() - 2;
    int64_t points = out.elements(1, 1 + spatial);
    float* to = outputs[0].as<float>();
    for (int64_t n = 0; n < out[0]; ++n) {
      const float* theta = inputs[0].as<float>() + n * spatial * (spatial + 1);
      for (int64_t p = 0; p < points; ++p, to += spatial) {
        float at[kMaxSpatial];  // the last axis first
        int64_t rest = p;
        for (int d = 0; d < spatial; ++d) {
          int64_t length = out[spatial - d];
          at[d] = coordinate(rest % length, length);
          rest /= length;
        }
        for (int row = 0; row < spatial; ++row) {
          const float* m = theta + row * (spatial + 1);
          float sum = m[spatial];
          for (int d = 0; d < spatial; ++d) sum += m[d] * at[d];
          to[row] = sum;
        }
      }
    }
  }

 private:
  float coordinate(int64_t i, int64_t length) const {
    auto x = static_cast<float>(i), size = static_cast<float>(length);
    if (align_) return length == 1 ? -1 : 2 * x / (size - 1) - 1;
    return (2 * x + 1) / size - 1;
  }
  bool align_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_sample(OpRegistry& registry) {
  registry.add("GridSample", make<GridSample>);
  registry.add("AffineGrid", make<AffineGrid>);
}

}  // namespace headrace
