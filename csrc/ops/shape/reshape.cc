// Ops that change a tensor's shape and not its bytes, and those that say what the shape is.
#include <cstring>

#include "ops/shape/shape_ops.h"

namespace headrace {
namespace {

class Identity : public ViewOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }
};

std::unique_ptr<Op> make_identity(const NodeSpec&) {
  return std::make_unique<Identity>();
}

class Reshape : public ViewOp {
 public:
  explicit Reshape(const NodeSpec& spec)
      : target_(spec, "shape", 1), allow_zero_(spec.int_or("allowzero", 0) != 0) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    std::span<const int64_t> target = target_.get(inputs);
    Shape to;
    int unknown = -1;
    for (size_t i = 0; i < target.size(); ++i) {
      auto axis = static_cast<int>(i);
      int64_t dim = target[i];
      if (dim == 0 && !allow_zero_) {
        if (axis >= from.rank()) mismatch(from, target);
        dim = from[axis];
      }
      if (dim < -1 || (dim == -1 && unknown >= 0)) mismatch(from, target);
      if (dim == -1) unknown = axis;
      to.push_back(dim == -1 ? 1 : dim);
    }
    require_sane(to);
    int64_t known = to.elements();
    if (unknown >= 0) {
      if (known == 0 || from.elements() % known != 0) mismatch(from, target);
      to[unknown] = from.elements() / known;
    }
    if (to.elements() != from.elements()) mismatch(from, target);
    outputs[0] = to;
  }

 private:
  [[noreturn]] static void mismatch(const Shape& from, std::span<const int64_t> target) {
    fail(ErrorKind::kShapeMismatch, "got a tensor of shape ", to_string(from),
         ", expected one that fits into ", to_string(Shape(target)));
  }
  IntList target_;
  bool allow_zero_;
};

std::unique_ptr<Op> make_reshape(const NodeSpec& spec) {
  return std::make_unique<Reshape>(spec);
}

// Marks the axes in a bit set; they count in a tensor of `rank` dims.
uint32_t axes_mask(std::span<const int64_t> axes, int rank) {
  uint32_t mask = 0;
  for (int64_t axis : axes) {
    uint32_t bit = 1u << normalize_axis(axis, rank);
    if ((mask & bit) != 0) {
      fail(ErrorKind::kShapeMismatch, "got axis ", axis, " twice, expected every axis once");
    }
    mask |= bit;
  }
  return mask;
}

class Squeeze : public ViewOp {
 public:
  explicit Squeeze(const NodeSpec& spec) : axes_(spec, "axes", 1) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    bool given = axes_.present(inputs);
    uint32_t mask = axes_mask(axes_.get(inputs), from.rank());
    outputs[0] = {};
    for (int axis = 0; axis < from.rank(); ++axis) {
      bool drop = given ? (mask >> axis & 1) != 0 : from[axis] == 1;
      if (drop && from[axis] != 1) {
        fail(ErrorKind::kShapeMismatch, "got length ", from[axis], " at axis ", axis, " of ",
             to_string(from), ", expected 1");
      }
      if (!drop) outputs[0].push_back(from[axis]);
    }
  }

 private:
  IntList axes_;
};

class Unsqueeze : public ViewOp {
 public:
  explicit Unsqueeze(const NodeSpec& spec) : axes_(spec, "axes", 1) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    std::span<const int64_t> axes = axes_.get(inputs);
    int rank = from.rank() + static_cast<int>(axes.size());
    if (rank > kMaxRank) {
      fail(ErrorKind::kUnsupportedOp, "got ", rank, " dims, expected at most ", kMaxRank);
    }
    uint32_t mask = axes_mask(axes, rank);
    outputs[0] = {};
    for (int axis = 0, next = 0; axis < rank; ++axis) {
      outputs[0].push_back((mask >> axis & 1) != 0 ? 1 : from[next++]);
    }
  }

 private:
  IntList axes_;
};

class Flatten : public ViewOp {
 public:
  explicit Flatten(const NodeSpec& spec) : axis_(spec.int_or("axis", 1)) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = axis_ == from.rank() ? from.rank() : normalize_axis(axis_, from.rank());
    outputs[0] = {from.elements(0, axis), from.elements(axis, from.rank())};
  }

 private:
  int64_t axis_;
};

// Here a tensor is the only optional there is: one that is there, or an absent input.
class HasElement : public Op {
 public:
  explicit HasElement(const NodeSpec& spec) : has_(spec.has_input(0)) {}
  void infer(InputViews, std::span<Shape> outputs) const override { outputs[0] = {}; }
  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) *run.output(0).view(r).as<bool>() = has_;
  }

 private:
  bool has_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

class ShapeOf : public Op {
 public:
  explicit ShapeOf(const NodeSpec& spec)
      : start_(spec.int_or("start", 0)), end_(spec.int_or("end", INT64_MAX)) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    auto [begin, end] = range(inputs[0].shape.rank());
    outputs[0] = {std::max(end - begin, int64_t{0})};
  }
  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) {
      const Shape& shape = run.input(0).shape(r);
      auto [begin, end] = range(shape.rank());
      auto* out = run.output(0).view(r).as<int64_t>();
      for (int64_t axis = begin; axis < end; ++axis) *out++ = shape[static_cast<int>(axis)];
    }
  }

 private:
  std::pair<int64_t, int64_t> range(int64_t rank) const {
    auto bound = [&](int64_t axis) {
      return std::clamp(axis < 0 ? axis + rank : axis, int64_t{0}, rank);
    };
    return {bound(start_), bound(end_)};
  }
  int64_t start_;
  int64_t end_;
};

class SizeOf : public Op {
 public:
  explicit SizeOf(const NodeSpec&) {}
  void infer(InputViews, std::span<Shape> outputs) const override { outputs[0] = {}; }
  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) {
      *run.output(0).view(r).as<int64_t>() = run.input(0).shape(r).elements();
    }
  }
};

// Inference: the data as it is, and a mask of ones if somebody wants it.
class Dropout : public Op {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    for (Shape& output : outputs) output = inputs[0].shape;
  }
  void run(const OpRun& run) const override {
    const Segments& in = run.input(0);
    for (size_t r = 0; r < run.requests(); ++r) {
      TensorView from = in.view(r);
      if (run.has_output(0) && from.bytes() > 0 && run.output(0).view(r).data != from.data) {
        std::memcpy(run.output(0).view(r).data, from.data, static_cast<size_t>(from.bytes()));
      }
      if (run.has_output(1)) std::ranges::fill(run.output(1).view(r).span<bool>(), true);
    }
  }
  bool can_overwrite(size_t input) const override { return input == 0; }
};

std::unique_ptr<Op> make_dropout(const NodeSpec& spec) {
  if (spec.has_input(2)) {
    if (!spec.is_constant(2)) spec.unsupported("training_mode is not constant, expected false");
    if (spec.constants[2].as<bool>()[0]) spec.unsupported("training_mode is true");
  }
  bool mask = spec.output_dtypes.size() > 1 && spec.output_dtypes[1] != DType::kNone;
  if (mask && spec.output_dtypes[1] != DType::kBool) spec.unsupported("a mask that is not bool");
  if (mask) return std::make_unique<Dropout>();
  return std::make_unique<Identity>();
}

}  // namespace

void register_views(OpRegistry& registry) {
  registry.add("Identity", make_identity);
  registry.add("OptionalGetElement", make_identity);
  registry.add("OptionalHasElement", make<HasElement>);
  registry.add("Reshape", make_reshape);
  registry.add("Squeeze", make<Squeeze>);
  registry.add("Unsqueeze", make<Unsqueeze>);
  registry.add("Flatten", make<Flatten>);
  registry.add("Shape", make<ShapeOf>);
  registry.add("Size", make<SizeOf>);
  registry.add("Dropout", make_dropout);
}

}  // namespace headrace
