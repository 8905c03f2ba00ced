// Transpose, DepthToSpace, SpaceToDepth, Expand, Tile: reading in another order.
#include "ops/shape/strided_copy.h"

namespace headrace {
namespace {

class Transpose : public StridedCopyOp {
 public:
  explicit Transpose(const NodeSpec& spec) : StridedCopyOp(spec) {
    std::vector<int64_t> order = spec.ints("perm");
    given_ = spec.has("perm");
    if (order.size() > kMaxRank) spec.unsupported(str("more than ", kMaxRank, " dims"));
    uint32_t seen = 0;
    for (int64_t axis : order) {
      auto rank = static_cast<int64_t>(order.size());
      if (axis < -rank || axis >= rank) spec.invalid(str("got axis ", axis, " in perm"));
      int64_t normal = axis < 0 ? axis + rank : axis;
      seen |= 1u << normal;
      perm_.push_back(normal);
    }
    if (seen + 1 != 1u << order.size()) spec.invalid("perm names an axis twice");
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    if (given_ && perm_.rank() != from.rank()) {
      fail(ErrorKind::kShapeMismatch, "got a tensor of shape ", to_string(from), ", expected ",
           perm_.rank(), " dims");
    }
    outputs[0] = {};
    for (int axis = 0; axis < from.rank(); ++axis) outputs[0].push_back(from[source(axis, from)]);
  }

  ReadOrder order(InputViews inputs, const Shape& output) const override {
    const Shape& from = inputs[0].shape;
    Strides dense = strides_of(from);
    ReadOrder read{.dims = output, .strides = {}};
    for (int axis = 0; axis < from.rank(); ++axis) read.strides[axis] = dense[source(axis, from)];
    return read;
  }

 private:
  int source(int axis, const Shape& from) const {
    return given_ ? static_cast<int>(perm_[axis]) : from.rank() - 1 - axis;
  }
  Shape perm_;
  bool given_;
};

// Both move blocks between channels and space: a reshape to six dims, a transposition, a reshape.
class BlockShuffle : public StridedCopyOp {
 public:
  BlockShuffle(const NodeSpec& spec, bool to_space)
      : StridedCopyOp(spec), block_(spec.int_or("blocksize", 0)), to_space_(to_space) {
    std::string mode = spec.string_or("mode", "DCR");
    if (mode != "DCR" && mode != "CRD") spec.invalid(str("got mode '", mode, "'"));
    column_first_ = mode == "CRD";
    if (block_ < 1) spec.invalid(str("got blocksize ", block_, ", expected at least 1"));
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    bool fits = x.rank() == 4 && (to_space_ ? x[1] % (block_ * block_) == 0
                                            : x[2] % block_ == 0 && x[3] % block_ == 0);
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got a tensor of shape ", to_string(x),
           ", expected [N, C, H, W] that blocks of ", block_, " divide");
    }
    outputs[0] = to_space_ ? Shape{x[0], x[1] / (block_ * block_), x[2] * block_, x[3] * block_}
                           : Shape{x[0], x[1] * block_ * block_, x[2] / block_, x[3] / block_};
  }

  ReadOrder order(InputViews inputs, const Shape& out) const override {
    const Shape& x = inputs[0].shape;
    int64_t b = block_;
    if (!to_space_) {  // x as [N, C, H/b, b, W/b, b], read as [N, b, b, C, H/b, W/b]
      Strides s = strides_of({x[0], x[1], out[2], b, out[3], b});
      if (column_first_) {  // read as [N, C, b, b, H/b, W/b]
        return {.dims = {x[0], x[1], b, b, out[2], out[3]},
                .strides = {{s[0], s[1], s[3], s[5], s[2], s[4]}}};
      }
      return {.dims = {x[0], b, b, x[1], out[2], out[3]},
              .strides = {{s[0], s[3], s[5], s[1], s[2], s[4]}}};
    }
    // x as [N, b, b, C', H, W] or [N, C', b, b, H, W], read as [N, C', H, b, W, b]
    Shape dims = {x[0], out[1], x[2], b, x[3], b};
    if (column_first_) {
      Strides s = strides_of({x[0], out[1], b, b, x[2], x[3]});
      return {.dims = dims, .strides = {{s[0], s[1], s[4], s[2], s[5], s[3]}}};
    }
    Strides s = strides_of({x[0], b, b, out[1], x[2], x[3]});
    return {.dims = dims, .strides = {{s[0], s[3], s[4], s[1], s[5], s[2]}}};
  }

 private:
  int64_t block_;
  bool to_space_;
  bool column_first_ = false;
};

class Expand : public StridedCopyOp {
 public:
  explicit Expand(const NodeSpec& spec) : StridedCopyOp(spec), shape_(spec, "shape", 1) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Shape target(shape_.get(inputs));
    require_sane(target);
    outputs[0] = broadcast(inputs[0].shape, target);
  }
  ReadOrder order(InputViews inputs, const Shape& output) const override {
    return {.dims = output, .strides = broadcast_strides(inputs[0].shape, output)};
  }

 private:
  IntList shape_;
};

class Tile : public StridedCopyOp {
 public:
  explicit Tile(const NodeSpec& spec) : StridedCopyOp(spec), repeats_(spec, "repeats", 1) {
    if (spec.opset < 6) spec.unsupported("the version before opset 6");
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    std::span<const int64_t> repeats = repeats_.get(inputs);
    if (static_cast<int>(repeats.size()) != from.rank()) {
      fail(ErrorKind::kShapeMismatch, "got ", repeats.size(), " repeats for a tensor of shape ",
           to_string(from), ", expected one per axis");
    }
    outputs[0] = from;
    int doubled = 0;  // dims of the read order
    for (int axis = 0; axis < from.rank(); ++axis) {
      int64_t times = repeats[static_cast<size_t>(axis)];
      if (times < 0) fail(ErrorKind::kShapeMismatch, "got ", times, " repeats, expected >= 0");
      if (times > INT32_MAX) fail(ErrorKind::kShapeMismatch, "got ", times, " repeats");
      outputs[0][axis] *= times;
      doubled += (times != 1 && from[axis] != 1) ? 2 : 1;
    }
    require_sane(outputs[0]);
    if (doubled > kMaxRank) {
      fail(ErrorKind::kUnsupportedOp, "got repeats along too many axes of ", to_string(from));
    }
  }
  ReadOrder order(InputViews inputs, const Shape& output) const override {
    const Shape& from = inputs[0].shape;
    Strides dense = strides_of(from);
    ReadOrder read;
    for (int axis = 0; axis < from.rank(); ++axis) {
      if (from[axis] == 1) {
        read.dims.push_back(output[axis]);  // stride 0
        continue;
      }
      if (output[axis] != from[axis]) {
        read.dims.push_back(from[axis] == 0 ? 0 : output[axis] / from[axis]);
      }
      read.strides[read.dims.rank()] = dense[axis];
      read.dims.push_back(from[axis]);
    }
    return read;
  }

 private:
  IntList repeats_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}
template <bool kToSpace>
std::unique_ptr<Op> make_shuffle(const NodeSpec& spec) {
  return std::make_unique<BlockShuffle>(spec, kToSpace);
}

}  // namespace

void register_transpose(OpRegistry& registry) {
  registry.add("Transpose", make<Transpose>);
  registry.add("DepthToSpace", make_shuffle<true>);
  registry.add("SpaceToDepth", make_shuffle<false>);
  registry.add("Expand", make<Expand>);
  registry.add("Tile", make<Tile>);
}

}  // namespace headrace
