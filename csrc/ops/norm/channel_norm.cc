// Normalizations of [N, C, ...] tensors whose last step is a factor and an offset per channel:
// BatchNormalization (inference), InstanceNormalization and GroupNormalization.
#include <cmath>

#include "ops/norm/room.h"
#include "ops/rows.h"

namespace headrace {
namespace {

// [N, C, ...] as N x C planes of `plane` elements.
struct Planes {
  int64_t batch, channels, plane;
  explicit Planes(const Shape& shape)
      : batch(shape[0]),
        channels(shape.rank() > 1 ? shape[1] : 1),
        plane(shape.rank() > 1 ? shape.elements(2, shape.rank()) : 1) {}
};

void check_rank(const Shape& x, int rank) {
  if (x.rank() < rank) {
    fail(ErrorKind::kShapeMismatch, "X: got ", to_string(x), ", expected at least ", rank,
         " dims, [N, C, ...]");
  }
}

class BatchNorm final : public Op {
 public:
  explicit BatchNorm(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, norm_kernels)),
        epsilon_(spec.float_or("epsilon", 1e-5f)) {
    for (size_t i = 1; i < 5; ++i) constant_ = constant_ && spec.is_constant(i);
    if (!constant_) return;
    channels_ = spec.constants[1].elements();
    for (size_t i = 2; i < 5; ++i) {
      check_elements(kNames[i], spec.constants[i].shape, channels_);
    }
    folded_ = spec.pack(2 * channels_ * static_cast<int64_t>(sizeof(float)), [&](std::byte* to) {
      fold(spec.constants.data(), channels_, reinterpret_cast<float*>(to));
    });
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    check_rank(inputs[0].shape, 1);
    int64_t channels = Planes(inputs[0].shape).channels;
    if (constant_ && channels != channels_) {
      fail(ErrorKind::kShapeMismatch, "X: got ", to_string(inputs[0].shape), ", expected ",
           channels_, " channels");
    }
    for (size_t i = 1; i < 5 && !constant_; ++i) {
      check_elements(kNames[i], inputs[i].shape, channels);
    }
    outputs[0] = inputs[0].shape;
  }
  bool can_overwrite(size_t input) const override { return input == 0; }
  bool consumes(size_t input) const override { return constant_ && input > 0; }

  void run(const OpRun& run) const override {
    int64_t elements = run.output(0).elements();
    if (elements == 0) return;
    const float* folded = folded_.as<float>();
    int64_t folded_stride = 0;
    if (!constant_) {
      for (size_t r = 0; r < run.requests(); ++r) {
        folded_stride = std::max(folded_stride, 2 * Planes(run.output(0).shape(r)).channels);
      }
      folded = fold_all(run, folded_stride);
    }
    // Where channels are columns (a plane is one element), a row is a whole [C].
    auto rows_of = [&](size_t r) {
      Planes planes(run.output(0).shape(r));
      return planes.plane == 1 ? planes.batch : planes.batch * planes.channels;
    };
    int64_t rows = 0;
    for (size_t r = 0; r < run.requests(); ++r) rows += rows_of(r);
    for_rows(run, min_rows_of(elements / std::max<int64_t>(rows, 1)), rows_of,
             [&](size_t r, int64_t begin, int64_t end) {
               apply(run, r, begin, end, folded + static_cast<int64_t>(r) * folded_stride);
             });
  }

 private:
  static constexpr const char* kNames[] = {"X", "scale", "B", "mean", "var"};

  // Factors, then offsets.
  void fold(const ConstTensorView* inputs, int64_t channels, float* folded) const {
    for (int64_t c = 0; c < channels; ++c) {
      double factor = inputs[1].as<float>()[c] /
                      std::sqrt(static_cast<double>(inputs[4].as<float>()[c]) + epsilon_);
      folded[c] = static_cast<float>(factor);
      folded[channels + c] = static_cast<float>(
          inputs[2].as<float>()[c] - static_cast<double>(inputs[3].as<float>()[c]) * factor);
    }
  }

  const float* fold_all(const OpRun& run, int64_t stride) const {
    auto* folded = run.scratch_of<float>(stride * static_cast<int64_t>(run.requests()));
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView inputs[5];
      for (size_t i = 0; i < 5; ++i) inputs[i] = run.input(i).view(r);
      fold(inputs, Planes(inputs[0].shape).channels, folded + static_cast<int64_t>(r) * stride);
    }
    return folded;
  }

  void apply(const OpRun& run, size_t r, int64_t begin, int64_t end, const float* folded) const {
    Planes planes(run.output(0).shape(r));
    const float* x = run.input(0).view(r).as<float>();
    float* y = run.output(0).view(r).as<float>();
    int64_t channels = planes.channels;
    for (int64_t row = begin; row < end; ++row) {
      if (planes.plane == 1) {
        kernels_.affine_each(x + row * channels, y + row * channels, channels, folded,
                             folded + channels);
      } else {
        int64_t c = row % channels;
        kernels_.affine(x + row * planes.plane, y + row * planes.plane, planes.plane, folded[c],
                        folded[channels + c]);
      }
    }
  }

  const NormKernels& kernels_;
  float epsilon_;
  bool constant_ = true;
  int64_t channels_ = 0;  // if constant_
  Packed folded_;         // if constant_
};

// Each group of a sample's channels to mean 0 and variance 1; InstanceNormalization has groups of
// one channel.
class GroupNorm final : public Op {
 public:
  GroupNorm(const NodeSpec& spec, int64_t groups, bool affine_per_group)
      : kernels_(HEADRACE_KERNELS(spec.isa, norm_kernels)),
        groups_(groups),
        affine_per_group_(affine_per_group),
        epsilon_(spec.float_or("epsilon", 1e-5f)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    check_rank(x, 2);
    if (groups_ > 0 && x[1] % groups_ != 0) {
      fail(ErrorKind::kShapeMismatch, "X: got ", x[1], " channels, expected a multiple of ",
           groups_, " groups");
    }
    check_elements("scale", inputs[1].shape, affine_per_group_ ? groups_ : x[1]);
    check_elements("bias", inputs[2].shape, affine_per_group_ ? groups_ : x[1]);
    outputs[0] = x;
  }
  bool can_overwrite(size_t input) const override { return input == 0; }

  void run(const OpRun& run) const override {
    int64_t elements = run.output(0).elements();
    if (elements == 0) return;
    auto rows_of = [&](size_t r) { return run.output(0).shape(r)[0] * groups(r, run); };
    int64_t rows = 0;
    for (size_t r = 0; r < run.requests(); ++r) rows += rows_of(r);
    for_rows(run, min_rows_of(elements / std::max<int64_t>(rows, 1)), rows_of,
             [&](size_t r, int64_t begin, int64_t end) {
               for (int64_t row = begin; row < end; ++row) apply(run, r, row);
             });
  }

 private:
  int64_t groups(size_t r, const OpRun& run) const {
    return groups_ > 0 ? groups_ : run.output(0).shape(r)[1];
  }

  // Group row % groups of sample row / groups.
  void apply(const OpRun& run, size_t r, int64_t row) const {
    Planes planes(run.output(0).shape(r));
    int64_t group = row % groups(r, run);
    int64_t channels = planes.channels / groups(r, run);
    const float* x = run.input(0).view(r).as<float>() + row * channels * planes.plane;
    float* y = run.output(0).view(r).as<float>() + row * channels * planes.plane;
    float mean;
    float variance;
    kernels_.moments(x, channels * planes.plane, &mean, &variance);
    float inv = 1.0f / std::sqrt(variance + epsilon_);
    for (int64_t c = 0; c < channels; ++c) {
      int64_t at = affine_per_group_ ? group : group * channels + c;
      float factor = run.input(1).view(r).as<float>()[at] * inv;
      float offset = run.input(2).view(r).as<float>()[at] - mean * factor;
      kernels_.affine(x + c * planes.plane, y + c * planes.plane, planes.plane, factor, offset);
    }
  }

  const NormKernels& kernels_;
  int64_t groups_;  // 0: as many as channels
  bool affine_per_group_;
  float epsilon_;
};

void require_float32(const NodeSpec& spec, size_t inputs) {
  require_one_dtype(spec, inputs);
  if (spec.input_dtypes.at(0) != DType::kF32) {
    spec.unsupported(str("no kernel for ", name_of(spec.input_dtypes[0])));
  }
}

}  // namespace

std::unique_ptr<Op> make_batch_norm(const NodeSpec& spec) {
  require_float32(spec, 5);
  if (spec.int_or("training_mode", 0) != 0) spec.unsupported("training_mode 1, only 0 is");
  if (spec.int_or("spatial", 1) != 1) spec.unsupported("spatial 0, only 1 is");
  if (spec.opset < 7 && spec.int_or("is_test", 0) != 1) spec.unsupported("is_test 0, only 1 is");
  for (size_t o = 1; o < spec.output_dtypes.size(); ++o) {
    if (spec.output_dtypes[o] != DType::kNone) spec.unsupported("outputs of training");
  }
  return std::make_unique<BatchNorm>(spec);
}

std::unique_ptr<Op> make_group_norm(const NodeSpec& spec) {
  require_float32(spec, 3);
  if (spec.op == "InstanceNormalization") return std::make_unique<GroupNorm>(spec, 0, false);
  if (spec.int_or("stash_type", 1) != 1) spec.unsupported("a stash_type that is not 1 (float32)");
  int64_t groups = spec.int_or("num_groups", 0);
  if (groups < 1)
    spec.invalid(str("attribute 'num_groups': got ", groups, ", expected at least 1"));
  // Up to opset 20 the scale and bias belong to groups, afterwards to channels.
  return std::make_unique<GroupNorm>(spec, groups, spec.opset < 21);
}

}  // namespace headrace
