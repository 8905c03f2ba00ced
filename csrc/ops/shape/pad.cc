// Pad and CenterCropPad.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/visit.h"
#include "ops/shape/shape_ops.h"

namespace headrace {
namespace {

enum class PadMode { kConstant, kReflect, kEdge, kWrap };

// What is added before and after each axis; negative where elements are cut off.
struct Padding {
  int64_t before[kMaxRank] = {};
  int64_t after[kMaxRank] = {};
};

// The input's index that output index i reads along an axis of length d, or -1 for the fill value.
int64_t source_index(int64_t i, int64_t before, int64_t d, PadMode mode) {
  int64_t at = i - before;
  if (at >= 0 && at < d) return at;
  switch (mode) {
    case PadMode::kConstant:
      return -1;
    case PadMode::kEdge:
      return at < 0 ? 0 : d - 1;
    case PadMode::kWrap:
      return ((at % d) + d) % d;
    case PadMode::kReflect:
      break;
  }
  if (d == 1) return 0;
  int64_t period = 2 * (d - 1);
  at = ((at % period) + period) % period;
  return at < d ? at : period - at;
}

template <class T>
void pad_rows(const TensorView& in, const TensorView& out, const Padding& padding, PadMode mode,
              T fill) {
  int rank = in.shape.rank();
  const T* from = in.as<T>();
  T* to = out.as<T>();
  if (rank == 0) {
    *to = *from;
    return;
  }
  Strides strides = strides_of(in.shape);
  int64_t width = out.shape[rank - 1];
  int64_t length = in.shape[rank - 1];
  int64_t first = padding.before[rank - 1];
  int64_t index[kMaxRank] = {};
  for (int64_t rows = out.elements() / width; rows > 0; --rows, to += width) {
    const T* row = from;
    for (int axis = 0; axis + 1 < rank && row != nullptr; ++axis) {
      int64_t at = source_index(index[axis], padding.before[axis], in.shape[axis], mode);
      row = at < 0 ? nullptr : row + at * strides[axis];
    }
    // The input lies in [start, stop) as it is.
    int64_t start = row == nullptr ? width : std::clamp<int64_t>(first, 0, width);
    int64_t stop = row == nullptr ? width : std::clamp<int64_t>(first + length, start, width);
    auto around = [&](int64_t i) {
      int64_t at = row == nullptr ? -1 : source_index(i, first, length, mode);
      to[i] = at < 0 ? fill : row[at];
    };
    for (int64_t i = 0; i < start; ++i) around(i);
    if (stop > start) std::copy(row + start - first, row + stop - first, to + start);
    for (int64_t i = stop; i < width; ++i) around(i);
    for (int axis = rank - 2; axis >= 0 && ++index[axis] == out.shape[axis]; --axis)
      index[axis] = 0;
  }
}

class PadOp : public Op {
 public:
  explicit PadOp(PadMode mode) : mode_(mode) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const final {
    const Shape& from = inputs[0].shape;
    Padding padding = padding_of(inputs);
    outputs[0] = from;
    for (int axis = 0; axis < from.rank(); ++axis) {
      constexpr int64_t kMost = int64_t{1} << 40;
      bool sane = std::abs(padding.before[axis]) < kMost && std::abs(padding.after[axis]) < kMost;
      int64_t length = sane ? from[axis] + padding.before[axis] + padding.after[axis] : -1;
      if (length < 0 || (from[axis] == 0 && length > 0 && mode_ != PadMode::kConstant)) {
        fail(ErrorKind::kShapeMismatch, "got axis ", axis, " of length ", from[axis], " padded by ",
             padding.before[axis], " and ", padding.after[axis], ", expected something to be left");
      }
      outputs[0][axis] = length;
    }
    require_sane(outputs[0]);
  }

  void run(const OpRun& run) const final {
    run.parallel_requests([&](size_t r) {
      ConstTensorView inputs[4];
      size_t count = std::min<size_t>(run.inputs(), 4);
      for (size_t i = 0; i < count; ++i) {
        if (run.has_input(i)) inputs[i] = run.input(i).view(r);
      }
      TensorView out = run.output(0).view(r);
      if (out.elements() == 0) return;
      Padding padding = padding_of({inputs, count});
      visit_size(size_of(out.dtype), [&]<class T>() {
        T fill;
        std::memcpy(&fill, fill_of({inputs, count}), sizeof(T));
        pad_rows<T>(run.input(0).view(r), out, padding, mode_, fill);
      });
    });
  }

 protected:
  virtual Padding padding_of(InputViews inputs) const = 0;
  virtual const void* fill_of(InputViews inputs) const = 0;

 private:
  PadMode mode_;
};

PadMode mode_of(const NodeSpec& spec) {
  std::string mode = spec.string_or("mode", "constant");
  if (mode == "constant") return PadMode::kConstant;
  if (mode == "reflect") return PadMode::kReflect;
  if (mode == "edge") return PadMode::kEdge;
  if (mode == "wrap") return PadMode::kWrap;
  spec.unsupported(str("mode '", mode, "'"));
}

class Pad final : public PadOp {
 public:
  explicit Pad(const NodeSpec& spec)
      : PadOp(mode_of(spec)), pads_(spec, "pads", 1), axes_(spec, "axes", 3) {
    if (spec.opset < 2) spec.unsupported("the version before opset 2");
    if (spec.opset >= 11) return;
    float value = spec.float_or("value", 0);
    visit_dtype(Floats{}, spec.input_dtypes.at(0), [&]<class T>() {
      T fill = T(value);
      std::memcpy(fill_, &fill, sizeof(T));
    });
  }

 private:
  Padding padding_of(InputViews inputs) const override {
    int rank = inputs[0].shape.rank();
    std::span<const int64_t> pads = pads_.get(inputs);
    std::span<const int64_t> axes = axes_.get(inputs);
    size_t count = axes_.present(inputs) ? axes.size() : static_cast<size_t>(rank);
    if (pads.size() != 2 * count) {
      fail(ErrorKind::kShapeMismatch, "got ", pads.size(), " pads for ", count,
           " axes, expected two per axis");
    }
    Padding padding;
    for (size_t i = 0; i < count; ++i) {
      int axis = normalize_axis(axes.empty() ? static_cast<int64_t>(i) : axes[i], rank);
      padding.before[axis] = pads[i];
      padding.after[axis] = pads[count + i];
    }
    return padding;
  }
  const void* fill_of(InputViews inputs) const override {
    bool given = inputs.size() > 2 && inputs[2].present() && inputs[2].elements() > 0;
    return given ? inputs[2].data : fill_;
  }

  IntList pads_;
  IntList axes_;
  std::byte fill_[16] = {};  // zero, false or an empty string
};

class CenterCropPad final : public PadOp {
 public:
  explicit CenterCropPad(const NodeSpec& spec)
      : PadOp(PadMode::kConstant), axes_(spec.ints("axes")) {
    require_inputs(spec, 2);
    if (spec.input_dtypes[1] != DType::kI32 && spec.input_dtypes[1] != DType::kI64) {
      unsupported_dtype(spec, 1);
    }
  }

 private:
  Padding padding_of(InputViews inputs) const override {
    const Shape& from = inputs[0].shape;
    int64_t count = axes_.empty() ? from.rank() : static_cast<int64_t>(axes_.size());
    if (inputs[1].elements() != count) {
      fail(ErrorKind::kShapeMismatch, "got ", inputs[1].elements(), " lengths, expected ", count);
    }
    Padding padding;
    for (int64_t i = 0; i < count; ++i) {
      int axis = normalize_axis(axes_.empty() ? i : axes_[static_cast<size_t>(i)], from.rank());
      int64_t added = int_at(inputs[1], i) - from[axis];
      // What is cut or added is halved, rounding towards nothing.
      padding.before[axis] = added / 2;
      padding.after[axis] = added - added / 2;
    }
    return padding;
  }
  const void* fill_of(InputViews) const override { return fill_; }

  std::vector<int64_t> axes_;
  std::byte fill_[16] = {};
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_pad(OpRegistry& registry) {
  registry.add("Pad", make<Pad>);
  registry.add("CenterCropPad", make<CenterCropPad>);
}

}  // namespace headrace
