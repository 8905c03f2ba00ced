// ScatterElements, ScatterND, Scatter. Updates are applied in their own order, so that duplicate
// indices give the same bits every time.
#include <cstring>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

// Applies n neighbouring updates to n neighbouring elements.
using Apply = void (*)(void* to, const void* update, int64_t n, int64_t size);

void apply_copy(void* to, const void* update, int64_t n, int64_t size) {
  std::memcpy(to, update, static_cast<size_t>(n * size));
}

enum class Reduction { kAdd, kMul, kMax, kMin };

template <class T, Reduction kReduction>
void apply(void* to, const void* update, int64_t n, int64_t) {
  using C = ComputeType<T>;
  T* out = static_cast<T*>(to);
  const T* in = static_cast<const T*>(update);
  for (int64_t i = 0; i < n; ++i) {
    C a = C(out[i]), b = C(in[i]);
    if constexpr (kReduction == Reduction::kAdd) {
      if constexpr (std::is_integral_v<C>) {
        out[i] = static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
      } else {
        out[i] = static_cast<T>(a + b);
      }
    } else if constexpr (kReduction == Reduction::kMul) {
      if constexpr (std::is_integral_v<C>) {
        out[i] = static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
      } else {
        out[i] = static_cast<T>(a * b);
      }
    } else if constexpr (kReduction == Reduction::kMax) {
      out[i] = a > b || a != a ? out[i] : in[i];
    } else {
      out[i] = a < b || a != a ? out[i] : in[i];
    }
  }
}

Apply apply_of(const NodeSpec& spec) {
  std::string reduction = spec.string_or("reduction", "none");
  if (reduction == "none") return apply_copy;
  Apply chosen = nullptr;
  visit_dtype(Numbers{}, spec.input_dtypes.at(0), [&]<class T>() {
    if (reduction == "add") chosen = apply<T, Reduction::kAdd>;
    if (reduction == "mul") chosen = apply<T, Reduction::kMul>;
    if (reduction == "max") chosen = apply<T, Reduction::kMax>;
    if (reduction == "min") chosen = apply<T, Reduction::kMin>;
  });
  if (chosen == nullptr) {
    spec.unsupported(str("reduction '", reduction, "' of ", name_of(spec.input_dtypes[0])));
  }
  return chosen;
}

class ScatterOp : public Op {
 public:
  explicit ScatterOp(const NodeSpec& spec) : apply_(apply_of(spec)) {
    require_inputs(spec, 3);
    require_index_dtype(spec, 1);
    if (spec.input_dtypes[2] != spec.input_dtypes[0]) unsupported_dtype(spec, 2);
  }

  void run(const OpRun& run) const final {
    run.parallel_requests([&](size_t r) {
      TensorView data = run.input(0).view(r);
      TensorView out = run.output(0).view(r);
      if (out.elements() == 0) return;
      if (out.data != data.data) std::memcpy(out.data, data.data, static_cast<size_t>(out.bytes()));
      ConstTensorView indices = run.input(1).view(r);
      ConstTensorView updates = run.input(2).view(r);
      if (updates.elements() > 0) scatter(out, indices, updates);
    });
  }

  bool can_overwrite(size_t input) const final { return input == 0; }

 protected:
  virtual void scatter(const TensorView& out, const ConstTensorView& indices,
                       const ConstTensorView& updates) const = 0;
  Apply apply_;
};

class ScatterElements final : public ScatterOp {
 public:
  explicit ScatterElements(const NodeSpec& spec) : ScatterOp(spec), axis_(spec.int_or("axis", 0)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& data = inputs[0].shape;
    const Shape& indices = inputs[1].shape;
    int axis = normalize_axis(axis_, data.rank());
    bool fits = indices.rank() == data.rank() && indices == inputs[2].shape;
    for (int i = 0; fits && i < data.rank(); ++i) fits = i == axis || indices[i] <= data[i];
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got indices of shape ", to_string(indices),
           " and updates of ", to_string(inputs[2].shape), ", expected equal shapes of at most ",
           to_string(data), " except along axis ", axis);
    }
    for (int64_t i = 0; i < indices.elements(); ++i) {
      normalize_index(int_at(inputs[1], i), data[axis]);
    }
    outputs[0] = data;
  }

 private:
  void scatter(const TensorView& out, const ConstTensorView& indices,
               const ConstTensorView& updates) const override {
    int axis = normalize_axis(axis_, out.shape.rank());
    Strides strides = strides_of(out.shape);
    int64_t step = strides[axis];
    strides[axis] = 0;
    Nest nest(indices.shape, {&strides, 1});
    int64_t size = size_of(out.dtype);
    auto* to = static_cast<std::byte*>(out.data);
    const auto* from = static_cast<const std::byte*>(updates.data);
    int64_t i = 0;
    nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
      for (int64_t j = 0; j < nest.inner(); ++j, ++i) {
        int64_t at = from_front(int_at(indices, i), out.shape[axis]) * step + offsets[0] +
                     j * nest.inner_stride(0);
        apply_(to + at * size, from + i * size, 1, size);
      }
    });
  }

  int64_t axis_;
};

class ScatterNd final : public ScatterOp {
 public:
  using ScatterOp::ScatterOp;

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& data = inputs[0].shape;
    const Shape& indices = inputs[1].shape;
    const Shape& updates = inputs[2].shape;
    bool fits = indices.rank() > 0 && indices[indices.rank() - 1] <= data.rank();
    int depth = fits ? static_cast<int>(indices[indices.rank() - 1]) : 0;
    Shape wanted;
    for (int i = 0; fits && i + 1 < indices.rank(); ++i) wanted.push_back(indices[i]);
    for (int i = depth; fits && i < data.rank(); ++i) wanted.push_back(data[i]);
    if (!fits || !(wanted == updates)) {
      fail(ErrorKind::kShapeMismatch, "got indices of shape ", to_string(indices),
           " and updates of ", to_string(updates), " for data of ", to_string(data),
           ", expected updates of ", to_string(wanted));
    }
    int64_t tuples = depth == 0 ? 0 : indices.elements() / depth;
    for (int64_t t = 0; t < tuples; ++t) {
      for (int d = 0; d < depth; ++d) normalize_index(int_at(inputs[1], t * depth + d), data[d]);
    }
    outputs[0] = data;
  }

 private:
  void scatter(const TensorView& out, const ConstTensorView& indices,
               const ConstTensorView& updates) const override {
    auto depth = static_cast<int>(indices.shape[indices.shape.rank() - 1]);
    int64_t run = out.shape.elements(depth, out.shape.rank());
    int64_t tuples = updates.elements() / run;
    int64_t size = size_of(out.dtype);
    for (int64_t t = 0; t < tuples; ++t) {
      int64_t at = 0;
      for (int d = 0; d < depth; ++d) {
        at = at * out.shape[d] + from_front(int_at(indices, t * depth + d), out.shape[d]);
      }
      apply_(static_cast<std::byte*>(out.data) + at * run * size,
             static_cast<const std::byte*>(updates.data) + t * run * size, run, size);
    }
  }
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_scatter(OpRegistry& registry) {
  registry.add("ScatterElements", make<ScatterElements>);
  registry.add("Scatter", make<ScatterElements>);
  registry.add("ScatterND", make<ScatterNd>);
}

}  // namespace headrace
