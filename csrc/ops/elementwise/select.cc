// Where and Clip.
#include <limits>

#include "core/strided.h"
#include "ops/elementwise/arithmetic.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

template <class T>
void where_loop(const LoopArgs& args) {
  const auto* choose = args.input<uint8_t>(0);
  const T* a = args.input<T>(1);
  const T* b = args.input<T>(2);
  T* out = args.output<T>();
  const int64_t* step = args.step;
  if (step[0] == 1 && step[1] == 1 && step[2] == 1) {
    for (int64_t i = 0; i < args.n; ++i) out[i] = choose[i] != 0 ? a[i] : b[i];
  } else {
    for (int64_t i = 0; i < args.n; ++i) {
      out[i] = choose[i * step[0]] != 0 ? a[i * step[1]] : b[i * step[2]];
    }
  }
}

std::unique_ptr<Op> make_where(const NodeSpec& spec) {
  require_inputs(spec, 3);
  if (spec.input_dtypes[0] != DType::kBool) unsupported_dtype(spec, 0);
  if (spec.input_dtypes[1] != spec.input_dtypes[2]) unsupported_dtype(spec, 2);
  ElementLoop loop = nullptr;
  visit_size(size_of(spec.input_dtypes[1]), [&]<class T>() { loop = where_loop<T>; });
  return std::make_unique<ElementwiseOp>(loop, 0b110u);
}

// A NaN stays NaN, and where min > max the answer is max, as in numpy.clip.
template <class T>
T clip(T x, T low, T high) {
  using C = ComputeType<T>;
  T raised = C(x) < C(low) ? low : x;
  return C(high) < C(raised) ? high : raised;
}

template <class T>
void clip_loop(const LoopArgs& args) {
  const T* x = args.input<T>(0);
  T* out = args.output<T>();
  if (args.step[0] == 1 && args.step[1] == 0 && args.step[2] == 0) {
    T low = *args.input<T>(1);
    T high = *args.input<T>(2);
    for (int64_t i = 0; i < args.n; ++i) out[i] = clip(x[i], low, high);
  } else {
    for (int64_t i = 0; i < args.n; ++i) {
      out[i] = clip(x[i * args.step[0]], args.input<T>(1)[i * args.step[1]],
                    args.input<T>(2)[i * args.step[2]]);
    }
  }
}

// The bound that lets everything through, for an absent min or max.
template <class T>
T open_bound(bool low) {
  using C = ComputeType<T>;
  using Limits = std::numeric_limits<C>;
  if constexpr (std::is_floating_point_v<C>) {
    return T(low ? -Limits::infinity() : Limits::infinity());
  } else {
    return low ? Limits::lowest() : Limits::max();
  }
}

// Where a bound is not an input, it lies in the op as a constant of one element.
class Clip : public Op {
 public:
  explicit Clip(ElementLoop loop) : loop_(loop) {}

  template <class T>
  void set_bounds(T low, T high) {
    static_assert(sizeof(T) <= sizeof(bounds_[0]));
    new (bounds_[0]) T(low);
    new (bounds_[1]) T(high);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    for (size_t i = 1; i < inputs.size(); ++i) {
      if (!inputs[i].present() || inputs[i].elements() == 1) continue;
      fail(ErrorKind::kShapeMismatch, "got ", i == 1 ? "min" : "max", " of shape ",
           to_string(inputs[i].shape), ", expected a scalar");
    }
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    Segments operands[3] = {run.input(0), {}, {}};
    for (size_t i = 1; i < 3; ++i) {
      if (run.has_input(i)) {
        operands[i] = run.input(i);
        continue;
      }
      operands[i] = {.dtype = run.input(0).dtype,
                     .data = const_cast<std::byte*>(bounds_[i - 1]),
                     .shapes = {&scalar_, 1},
                     .offsets = scalar_offsets_,
                     .shared = true};
    }
    run_broadcast(run, operands, run.output(0), loop_);
  }

  bool can_overwrite(size_t input) const override { return input == 0; }
  bool element_wise() const override { return true; }

 private:
  ElementLoop loop_;
  alignas(8) std::byte bounds_[2][8] = {};
  Shape scalar_;
  int64_t scalar_offsets_[2] = {0, 1};
};

std::unique_ptr<Op> make_clip(const NodeSpec& spec) {
  DType dtype = spec.input_dtypes.at(0);
  for (size_t i = 1; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && spec.input_dtypes[i] != dtype) unsupported_dtype(spec, i);
  }
  std::unique_ptr<Clip> op;
  visit_dtype(Numbers{}, dtype, [&]<class T>() {
    ElementLoop loop = clip_loop<T>;
    if (dtype == DType::kF32) loop = HEADRACE_KERNELS(spec.isa, arithmetic_kernels).clip;
    op = std::make_unique<Clip>(loop);
    T low = open_bound<T>(true);
    T high = open_bound<T>(false);
    if constexpr (!std::is_integral_v<T>) {  // attributes until opset 11
      low = spec.has("min") ? T(spec.float_or("min", 0)) : low;
      high = spec.has("max") ? T(spec.float_or("max", 0)) : high;
    }
    op->set_bounds(low, high);
  });
  if (op == nullptr) unsupported_dtype(spec, 0);
  return op;
}

}  // namespace

void register_select(OpRegistry& registry) {
  registry.add("Where", make_where);
  registry.add("Clip", make_clip);
}

}  // namespace headrace
