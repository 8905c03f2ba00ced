// QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.
#include "ops/quantize/quantize.h"

#include <cmath>
#include <limits>

#include "ops/quantize/quantize_kernels.h"

namespace headrace {
namespace {

// Which scale element `i` of a tensor goes by: one for all, one per index along an axis, or one per
// block along it.
struct ScaleMap {
  int64_t length = 1;  // of the axis
  int64_t inner = 1;   // elements behind the axis
  int64_t block = 0;   // 0: not blocked
  bool single = true;

  int64_t of(int64_t i) const {
    if (single) return 0;
    int64_t along = i / inner % length;
    if (block == 0) return along;
    int64_t blocks = (length + block - 1) / block;
    return (i / inner / length * blocks + along / block) * inner + i % inner;
  }
};

struct QuantizeArgs {
  ConstTensorView x;
  ConstTensorView scale;
  ConstTensorView zero;  // absent: 0
  TensorView y;
  ScaleMap map;
};

// Rounds to the nearest, ties to even, and saturates; NaN gives the zero point.
template <class Y>
Y saturate(float quotient, int64_t zero) {
  constexpr float kFar = 1e9f;
  float near = std::clamp(std::rint(quotient), -kFar, kFar);
  int64_t whole = (near == near ? static_cast<int64_t>(near) : 0) + zero;
  using Limits = std::numeric_limits<Y>;
  return static_cast<Y>(std::clamp<int64_t>(whole, Limits::min(), Limits::max()));
}

template <class X, class S, class Y>
void quantize(const QuantizeArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int64_t at = args.map.of(i);
    float quotient =
        static_cast<float>(args.x.as<X>()[i]) / static_cast<float>(args.scale.as<S>()[at]);
    // Where both are 16-bit floats ONNX divides in that type.
    if constexpr (std::is_same_v<X, S> && sizeof(X) == 2) quotient = X(quotient);
    int64_t zero = args.zero.present() ? args.zero.as<Y>()[at] : 0;
    args.y.as<Y>()[i] = saturate<Y>(quotient, zero);
  }
}

template <class X, class S, class Y>
void dequantize(const QuantizeArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    int64_t at = args.map.of(i);
    auto x = static_cast<float>(args.x.as<X>()[i]);
    if (args.zero.present()) x -= static_cast<float>(args.zero.as<X>()[at]);
    args.y.as<Y>()[i] = Y(x * static_cast<float>(args.scale.as<S>()[at]));
  }
}

// Elements [begin, end).
using QuantizeLoop = void (*)(const QuantizeArgs&, int64_t begin, int64_t end);

// What does the same as a QuantizeLoop, vectorised: for elements that share a scale, and for
// elements that each have their own. Null where there is none.
struct VectorLoops {
  QuantizeKernel shared = nullptr;
  QuantizeEachKernel each = nullptr;
};

class QuantizeOp : public Op {
 public:
  QuantizeOp(const NodeSpec& spec, QuantizeLoop loop, VectorLoops vectors)
      : axis_(spec.int_or("axis", 1)),
        block_(spec.int_or("block_size", 0)),
        loop_(loop),
        vectors_(vectors) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    map_of(inputs);
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    if (static_cast<int>(run.requests()) < run.threads()) {
      for (size_t r = 0; r < run.requests(); ++r) {
        QuantizeArgs args = args_of(run, r);
        run.parallel_ranges(args.x.elements(), kMinElements,
                            [&](int64_t begin, int64_t end, int) { range(args, begin, end); });
      }
      return;
    }
    run.parallel_requests([&](size_t r) {
      QuantizeArgs args = args_of(run, r);
      range(args, 0, args.x.elements());
    });
  }

 private:
  static constexpr int64_t kMinElements = 16384;  // below, another thread costs more than it saves
  static constexpr int64_t kMinRun = 16;          // elements of a scale that fill a vector

  QuantizeArgs args_of(const OpRun& run, size_t r) const {
    ConstTensorView inputs[3] = {run.input(0).view(r), run.input(1).view(r), {}};
    if (run.has_input(2)) inputs[2] = run.input(2).view(r);
    return {inputs[0], inputs[1], inputs[2], run.output(0).view(r), map_of(inputs)};
  }

  // Elements [begin, end).
  void range(const QuantizeArgs& args, int64_t begin, int64_t end) const {
    const ScaleMap& map = args.map;
    bool runs = map.single || (map.block == 0 && map.inner >= kMinRun);
    bool last_axis = !map.single && map.block == 0 && map.inner == 1;
    if (vectors_.shared == nullptr || !(runs || last_axis)) return loop_(args, begin, end);
    while (begin < end) {
      int64_t stop = end;
      if (runs && !map.single) stop = std::min(end, (begin / map.inner + 1) * map.inner);
      if (last_axis) stop = std::min(end, (begin / map.length + 1) * map.length);
      run_of_scales(args, begin, stop, last_axis);
      begin = stop;
    }
  }

  // Elements that share a scale, or `each` have one, these lying together.
  void run_of_scales(const QuantizeArgs& args, int64_t begin, int64_t end, bool each) const {
    auto at_of = [](const ConstTensorView& tensor, int64_t i) {
      return static_cast<const std::byte*>(tensor.data) + i * size_of(tensor.dtype);
    };
    int64_t at = args.map.of(begin);
    const auto* x = at_of(args.x, begin);
    auto* y = const_cast<std::byte*>(at_of(args.y, begin));
    const float* scale = args.scale.as<float>() + at;
    if (each) {
      const auto* zeros = args.zero.present() ? at_of(args.zero, at) : nullptr;
      return vectors_.each(x, y, end - begin, scale, zeros);
    }
    int32_t zero = 0;
    if (args.zero.present()) {
      zero =
          args.zero.dtype == DType::kU8 ? args.zero.as<uint8_t>()[at] : args.zero.as<int8_t>()[at];
    }
    vectors_.shared(x, y, end - begin, *scale, zero);
  }

  ScaleMap map_of(InputViews inputs) const {
    const Shape& x = inputs[0].shape;
    const Shape& scale = inputs[1].shape;
    bool zero_fits =
        inputs.size() < 3 || !inputs[2].present() || inputs[2].elements() == scale.elements();
    ScaleMap map;
    bool fits = scale.elements() == 1;
    if (!fits || block_ > 0) {
      int axis = normalize_axis(axis_, x.rank());
      map = {.length = x[axis],
             .inner = x.elements(axis + 1, x.rank()),
             .block = block_,
             .single = false};
      Shape wanted = x;
      if (block_ > 0) wanted[axis] = (x[axis] + block_ - 1) / block_;
      fits = block_ > 0 ? scale == wanted : scale == Shape{x[axis]};
    }
    if (!fits || !zero_fits) {
      fail(ErrorKind::kShapeMismatch, "got scales of shape ", to_string(scale), " for ",
           to_string(x), ", expected one, or one per index or block of axis ", axis_,
           ", and as many zero points");
    }
    return map;
  }

  int64_t axis_;
  int64_t block_;
  QuantizeLoop loop_;
  VectorLoops vectors_;
};

// Those between float32 and that dtype of 8 bits.
VectorLoops vectors_of(const NodeSpec& spec, DType wide, DType narrow, bool to_narrow) {
  if (wide != DType::kF32 || spec.input_dtypes[1] != DType::kF32) return {};
  const QuantizeKernels& k = HEADRACE_KERNELS(spec.isa, quantize_kernels);
  bool is_signed = narrow == DType::kI8;
  if (!is_signed && narrow != DType::kU8) return {};
  if (to_narrow) {
    return is_signed ? VectorLoops{k.to_i8, k.each_to_i8} : VectorLoops{k.to_u8, k.each_to_u8};
  }
  return is_signed ? VectorLoops{k.from_i8, k.each_from_i8}
                   : VectorLoops{k.from_u8, k.each_from_u8};
}

std::unique_ptr<Op> make_quantize(const NodeSpec& spec) {
  DType y = spec.output_dtypes.at(0);
  if (spec.int_or("precision", 0) != 0 && spec.int_or("precision", 0) != 1) {
    spec.unsupported("a precision other than float32");
  }
  if (spec.has_input(2) && spec.input_dtypes[2] != y) unsupported_dtype(spec, 2);
  QuantizeLoop loop = nullptr;
  visit_dtype(Types<float, Half, BFloat16, int32_t>{}, spec.input_dtypes.at(0), [&]<class X>() {
    visit_dtype(ScaleTypes{}, spec.input_dtypes.at(1), [&]<class S>() {
      visit_dtype(QuantizedTypes{}, y, [&]<class Y>() { loop = quantize<X, S, Y>; });
    });
  });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<QuantizeOp>(spec, loop, vectors_of(spec, spec.input_dtypes[0], y, true));
}

std::unique_ptr<Op> make_dequantize(const NodeSpec& spec) {
  DType x = spec.input_dtypes.at(0);
  if (spec.has_input(2) && spec.input_dtypes[2] != x) unsupported_dtype(spec, 2);
  QuantizeLoop loop = nullptr;
  visit_dtype(Types<uint8_t, int8_t, uint16_t, int16_t, int32_t>{}, x, [&]<class X>() {
    visit_dtype(ScaleTypes{}, spec.input_dtypes.at(1), [&]<class S>() {
      visit_dtype(ScaleTypes{}, spec.output_dtypes.at(0),
                  [&]<class Y>() { loop = dequantize<X, S, Y>; });
    });
  });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  VectorLoops vectors = vectors_of(spec, spec.output_dtypes[0], x, false);
  return std::make_unique<QuantizeOp>(spec, loop, vectors);
}

class DynamicQuantize : public Op {
 public:
  explicit DynamicQuantize(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, quantize_kernels)) {
    require_inputs(spec, 1);
    if (spec.input_dtypes[0] != DType::kF32) unsupported_dtype(spec, 0);
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    for (Shape& output : outputs) output = {};
    outputs[0] = inputs[0].shape;
  }
  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView x = run.input(0).view(r);
      float low = 0, high = 0;
      kernels_.range(x.as<float>(), x.elements(), &low, &high);
      float scale = (high == low ? 1.0f : high - low) / 255.0f;
      auto zero = static_cast<uint8_t>(std::rint(std::clamp(-low / scale, 0.0f, 255.0f)));
      if (run.has_output(0)) {
        kernels_.to_u8(x.data, run.output(0).view(r).data, x.elements(), scale, zero);
      }
      if (run.has_output(1)) *run.output(1).view(r).as<float>() = scale;
      if (run.has_output(2)) *run.output(2).view(r).as<uint8_t>() = zero;
    });
  }

 private:
  const QuantizeKernels& kernels_;
};

std::unique_ptr<Op> make_dynamic(const NodeSpec& spec) {
  return std::make_unique<DynamicQuantize>(spec);
}

}  // namespace

void register_quantize(OpRegistry& registry) {
  registry.add("QuantizeLinear", make_quantize);
  registry.add("DequantizeLinear", make_dequantize);
  registry.add("DynamicQuantizeLinear", make_dynamic);
}

}  // namespace headrace
