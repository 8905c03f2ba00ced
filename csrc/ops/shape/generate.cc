// Ops that make a tensor from a few numbers: ConstantOfShape, Range, EyeLike, Trilu, OneHot.
#include <cmath>
#include <cstring>

#include "core/visit.h"
#include "ops/shape/shape_ops.h"

namespace headrace {
namespace {

// The attribute `value` arrives as a list of one number.
class ConstantOfShape : public Op {
 public:
  explicit ConstantOfShape(const NodeSpec& spec) : shape_(spec, "input", 0) {
    if (spec.has_input(0) && spec.input_dtypes[0] != DType::kI64) spec.unsupported("input dtype");
    double number = 0;
    int64_t whole = 0;
    if (spec.has("value")) {
      const Attribute& value = spec.attributes.find("value")->second;
      if (const auto* floats = std::get_if<std::vector<double>>(&value);
          floats && !floats->empty()) {
        number = floats->front();
        whole = static_cast<int64_t>(number);
      } else if (const auto* ints = std::get_if<std::vector<int64_t>>(&value);
                 ints && !ints->empty()) {
        whole = ints->front();
        number = static_cast<double>(whole);
      } else {
        spec.unsupported("a value that is not one number");
      }
    }
    DType dtype = spec.output_dtypes.at(0);
    bool known = visit_dtype(NumbersAndBool{}, dtype, [&]<class T>() {
      T element;
      if constexpr (std::is_integral_v<T>) {
        element = static_cast<T>(whole);
      } else {
        element = static_cast<T>(number);
      }
      std::memcpy(element_, &element, sizeof(T));
    });
    if (!known) spec.unsupported(str("no kernel for dtype ", name_of(dtype)));
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = Shape(shape_.get(inputs));
    require_sane(outputs[0]);
  }

  void run(const OpRun& run) const override {
    const Segments& out = run.output(0);
    visit_size(size_of(out.dtype), [&]<class T>() {
      T element;
      std::memcpy(&element, element_, sizeof(T));
      std::fill_n(reinterpret_cast<T*>(out.data), out.elements(), element);
    });
  }

 private:
  IntList shape_;
  std::byte element_[16] = {};
};

class Range : public Op {
 public:
  explicit Range(const NodeSpec& spec) {
    bool known = visit_dtype(Types<float, double, int16_t, int32_t, int64_t, Half, BFloat16>{},
                             spec.input_dtypes.at(0), [&]<class T>() {
                               count_ = count<T>;
                               fill_ = fill<T>;
                             });
    if (!known) spec.unsupported(str("no kernel for dtype ", name_of(spec.input_dtypes[0])));
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    for (const ConstTensorView& input : inputs) {
      if (input.elements() != 1) {
        fail(ErrorKind::kShapeMismatch, "got a bound of shape ", to_string(input.shape),
             ", expected a scalar");
      }
    }
    outputs[0] = {count_(inputs)};
  }
  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView inputs[3] = {run.input(0).view(r), run.input(1).view(r),
                                   run.input(2).view(r)};
      fill_({inputs, 3}, run.output(0).view(r));
    }
  }

 private:
  template <class T>
  static int64_t count(InputViews inputs) {
    using C = ComputeType<T>;
    C start = *inputs[0].as<T>(), limit = *inputs[1].as<T>(), delta = *inputs[2].as<T>();
    if (delta == C(0)) fail(ErrorKind::kExecution, "got delta 0, expected another");
    constexpr double kMost = 1e12;
    double length = double(limit) - double(start);
    double steps = std::ceil(length / double(delta));
    if (!(steps <= kMost && std::abs(length) < 0x1p62))
      fail(ErrorKind::kExecution, "got a range of ", steps, " steps");
    if (!(steps > 0)) return 0;
    if constexpr (std::is_integral_v<C>) {
      // Exactly: doubles round beyond 2^53.
      auto span = static_cast<int64_t>(static_cast<uint64_t>(limit) - static_cast<uint64_t>(start));
      auto step = static_cast<int64_t>(delta);
      return (span - (step > 0 ? 1 : -1)) / step + 1;
    }
    return static_cast<int64_t>(steps);
  }
  template <class T>
  static void fill(InputViews inputs, TensorView out) {
    using C = ComputeType<T>;
    C start = *inputs[0].as<T>(), delta = *inputs[2].as<T>();
    T* to = out.as<T>();
    for (int64_t i = 0; i < out.elements(); ++i) {
      to[i] = static_cast<T>(static_cast<C>(start + static_cast<C>(i) * delta));
    }
  }
  int64_t (*count_)(InputViews) = nullptr;
  void (*fill_)(InputViews, TensorView) = nullptr;
};

class EyeLike : public Op {
 public:
  explicit EyeLike(const NodeSpec& spec) : diagonal_(spec.int_or("k", 0)) {
    bool known = visit_dtype(NumbersAndBool{}, spec.output_dtypes.at(0), [&]<class T>() {
      set_one_ = [](void* data, int64_t i) {
        T one = T(float(1));
        static_cast<T*>(data)[i] = one;
      };
    });
    if (!known) spec.unsupported(str("no kernel for dtype ", name_of(spec.output_dtypes[0])));
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    if (inputs[0].shape.rank() != 2) {
      fail(ErrorKind::kShapeMismatch, "got shape ", to_string(inputs[0].shape),
           ", expected 2 dims");
    }
    outputs[0] = inputs[0].shape;
  }
  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) {
      TensorView out = run.output(0).view(r);
      if (out.bytes() == 0) continue;
      std::memset(out.data, 0, static_cast<size_t>(out.bytes()));
      for (int64_t row = 0; row < out.shape[0]; ++row) {
        int64_t column = row + diagonal_;
        if (column >= 0 && column < out.shape[1]) set_one_(out.data, row * out.shape[1] + column);
      }
    }
  }

 private:
  int64_t diagonal_;
  void (*set_one_)(void*, int64_t) = nullptr;
};

class Trilu : public Op {
 public:
  explicit Trilu(const NodeSpec& spec) : upper_(spec.int_or("upper", 1) != 0) {
    if (spec.input_dtypes.at(0) == DType::kString) spec.unsupported("strings");
    if (spec.has_input(1) && spec.input_dtypes[1] != DType::kI64) unsupported_dtype(spec, 1);
  }
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    if (inputs[0].shape.rank() < 2) {
      fail(ErrorKind::kShapeMismatch, "got shape ", to_string(inputs[0].shape),
           ", expected at least 2 dims");
    }
    if (inputs.size() > 1 && inputs[1].present() && inputs[1].elements() != 1) {
      fail(ErrorKind::kShapeMismatch, "got k of shape ", to_string(inputs[1].shape),
           ", expected a scalar");
    }
    outputs[0] = inputs[0].shape;
  }
  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      TensorView out = run.output(0).view(r);
      int64_t k = run.has_input(1) ? *run.input(1).view(r).as<int64_t>() : 0;
      int rank = in.shape.rank();
      int64_t columns = in.shape[rank - 1];
      int64_t rows = in.shape[rank - 2];
      if (in.elements() == 0) return;
      k = std::clamp(k, -rows, columns);
      visit_size(size_of(in.dtype), [&]<class T>() {
        for (int64_t row = 0; row < in.elements() / columns; ++row) {
          int64_t split = row % rows + k + (upper_ ? 0 : 1);  // the first column right of the cut
          split = std::clamp(split, int64_t{0}, columns);
          const T* from = in.as<T>() + row * columns;
          T* to = out.as<T>() + row * columns;
          auto copy = [&](int64_t begin, int64_t end) {
            if (to != from) std::copy(from + begin, from + end, to + begin);
          };
          upper_ ? std::fill(to, to + split, T{}) : std::fill(to + split, to + columns, T{});
          upper_ ? copy(split, columns) : copy(0, split);
        }
      });
    });
  }
  bool can_overwrite(size_t input) const override { return input == 0; }

 private:
  bool upper_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_generate(OpRegistry& registry) {
  registry.add("ConstantOfShape", make<ConstantOfShape>);
  registry.add("Range", make<Range>);
  registry.add("EyeLike", make<EyeLike>);
  registry.add("Trilu", make<Trilu>);
}

}  // namespace headrace
