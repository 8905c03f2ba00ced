// NonZero and Compress, whose output shapes depend on the data.
#include <cstring>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

class NonZero : public Op {
 public:
  explicit NonZero(const NodeSpec& spec) {
    require_inputs(spec, 1);
    bool known = visit_dtype(NumbersAndBool{}, spec.input_dtypes[0], [&]<class T>() {
      is_set_ = [](const void* data, int64_t i) {
        using C = ComputeType<T>;
        return C(static_cast<const T*>(data)[i]) != C(0);
      };
    });
    if (!known) unsupported_dtype(spec, 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    int64_t count = 0;
    for (int64_t i = 0; i < inputs[0].elements(); ++i) count += is_set_(inputs[0].data, i) ? 1 : 0;
    outputs[0] = {inputs[0].shape.rank(), count};
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      TensorView out = run.output(0).view(r);
      int64_t count = out.shape[1];
      int64_t found = 0;
      for (int64_t i = 0; i < in.elements() && found < count; ++i) {
        if (!is_set_(in.data, i)) continue;
        int64_t rest = i;
        for (int axis = in.shape.rank() - 1; axis >= 0; --axis) {
          out.as<int64_t>()[axis * count + found] = rest % in.shape[axis];
          rest /= in.shape[axis];
        }
        ++found;
      }
    });
  }

 private:
  bool (*is_set_)(const void*, int64_t) = nullptr;
};

class Compress : public Op {
 public:
  explicit Compress(const NodeSpec& spec)
      : flat_(!spec.has("axis")), axis_(spec.int_or("axis", 0)) {
    require_inputs(spec, 2);
    if (spec.input_dtypes[1] != DType::kBool) unsupported_dtype(spec, 1);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = flat_ ? 0 : normalize_axis(axis_, from.rank());
    int64_t length = flat_ ? from.elements() : from[axis];
    if (inputs[1].elements() > length) {
      fail(ErrorKind::kShapeMismatch, "got a condition of ", inputs[1].elements(),
           " elements, expected at most ", length);
    }
    int64_t count = 0;
    for (bool keep : inputs[1].span<bool>()) count += keep ? 1 : 0;
    outputs[0] = flat_ ? Shape{count} : from;
    if (!flat_) outputs[0][axis] = count;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      ConstTensorView keep = run.input(1).view(r);
      int axis = flat_ ? 0 : normalize_axis(axis_, in.shape.rank());
      int64_t size = size_of(in.dtype);
      int64_t outer = flat_ ? 1 : in.shape.elements(0, axis);
      int64_t length = flat_ ? in.elements() : in.shape[axis];
      int64_t bytes = flat_ ? size : in.shape.elements(axis + 1, in.shape.rank()) * size;
      auto* to = static_cast<std::byte*>(run.output(0).view(r).data);
      for (int64_t o = 0; bytes > 0 && o < outer; ++o) {
        const auto* from = static_cast<const std::byte*>(in.data) + o * length * bytes;
        for (int64_t i = 0; i < keep.elements(); ++i) {
          if (!keep.as<bool>()[i]) continue;
          std::memcpy(to, from + i * bytes, static_cast<size_t>(bytes));
          to += bytes;
        }
      }
    });
  }

 private:
  bool flat_;
  int64_t axis_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_find(OpRegistry& registry) {
  registry.add("NonZero", make<NonZero>);
  registry.add("Compress", make<Compress>);
}

}  // namespace headrace
