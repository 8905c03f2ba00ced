// Slice.
#include "ops/shape/strided_copy.h"

namespace headrace {
namespace {

struct AxisSlice {
  int64_t start = 0;
  int64_t step = 1;
  int64_t length;
};

// Python's slicing of one axis.
AxisSlice slice_axis(int64_t start, int64_t end, int64_t step, int64_t dim) {
  if (step == 0) fail(ErrorKind::kShapeMismatch, "got a slice with step 0, expected another step");
  int64_t low = step > 0 ? 0 : -1;
  int64_t high = step > 0 ? dim : dim - 1;
  auto bound = [&](int64_t at) { return std::clamp(at < 0 ? at + dim : at, low, high); };
  int64_t from = bound(start);
  int64_t to = bound(end);
  // In unsigned steps, so that a step of INT64_MIN is no trouble.
  uint64_t span = step > 0 ? static_cast<uint64_t>(std::max<int64_t>(to - from, 0))
                           : static_cast<uint64_t>(std::max<int64_t>(from - to, 0));
  uint64_t stride =
      step > 0 ? static_cast<uint64_t>(step) : uint64_t{0} - static_cast<uint64_t>(step);
  auto length = static_cast<int64_t>(span == 0 ? 0 : (span - 1) / stride + 1);
  return {.start = from, .step = length > 1 ? step : 1, .length = length};
}

class Slice : public StridedCopyOp {
 public:
  explicit Slice(const NodeSpec& spec) : StridedCopyOp(spec), by_input_(spec.opset >= 10) {
    if (by_input_) {
      for (size_t i = 1; i < spec.inputs(); ++i) {
        DType dtype = spec.input_dtypes[i];
        if (dtype != DType::kNone && dtype != DType::kI64 && dtype != DType::kI32) {
          spec.unsupported(str("input ", i, " of dtype ", name_of(dtype)));
        }
      }
      return;
    }
    starts_ = spec.ints("starts");
    ends_ = spec.ints("ends");
    axes_ = spec.ints("axes");
    if (ends_.size() != starts_.size() || (!axes_.empty() && axes_.size() != starts_.size())) {
      spec.invalid("starts, ends and axes have different lengths");
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    AxisSlice slices[kMaxRank];
    slice(inputs, slices);
    outputs[0] = inputs[0].shape;
    for (int axis = 0; axis < outputs[0].rank(); ++axis) outputs[0][axis] = slices[axis].length;
  }

  ReadOrder order(InputViews inputs, const Shape& output) const override {
    AxisSlice slices[kMaxRank];
    slice(inputs, slices);
    Strides dense = strides_of(inputs[0].shape);
    ReadOrder read{.dims = output, .strides = {}};
    if (output.elements() == 0) return read;
    for (int axis = 0; axis < output.rank(); ++axis) {
      read.strides[axis] = dense[axis] * slices[axis].step;
      read.offset += dense[axis] * slices[axis].start;
    }
    return read;
  }

 private:
  void slice(InputViews inputs, AxisSlice* slices) const {
    const Shape& from = inputs[0].shape;
    for (int axis = 0; axis < from.rank(); ++axis) slices[axis].length = from[axis];
    if (!by_input_) {
      for (size_t i = 0; i < starts_.size(); ++i) {
        int axis = normalize_axis(axes_.empty() ? static_cast<int64_t>(i) : axes_[i], from.rank());
        slices[axis] = slice_axis(starts_[i], ends_[i], 1, from[axis]);
      }
      return;
    }
    int64_t count = inputs[1].elements();
    for (size_t i = 2; i < inputs.size(); ++i) {
      if (!inputs[i].present() || inputs[i].elements() == count) continue;
      fail(ErrorKind::kShapeMismatch, "got ", inputs[i].elements(), " elements in input ", i,
           ", expected as many as starts: ", count);
    }
    bool has_axes = inputs.size() > 3 && inputs[3].present();
    bool has_steps = inputs.size() > 4 && inputs[4].present();
    for (int64_t i = 0; i < count; ++i) {
      int axis = normalize_axis(has_axes ? int_at(inputs[3], i) : i, from.rank());
      slices[axis] = slice_axis(int_at(inputs[1], i), int_at(inputs[2], i),
                                has_steps ? int_at(inputs[4], i) : 1, from[axis]);
    }
  }

  bool by_input_;
  std::vector<int64_t> starts_;
  std::vector<int64_t> ends_;
  std::vector<int64_t> axes_;
};

std::unique_ptr<Op> make_slice(const NodeSpec& spec) {
  return std::make_unique<Slice>(spec);
}

}  // namespace

void register_slice(OpRegistry& registry) {
  registry.add("Slice", make_slice);
}

}  // namespace headrace
