// Cast, CastLike, BitCast.
#include <charconv>
#include <cmath>

#include "ops/elementwise/cast_kernels.h"
#include "ops/elementwise/functors.h"

namespace headrace {
namespace {

// Towards zero; out of range, where C++ leaves it undefined, as x86's instructions do it: the least
// number of its type, and of shorter types what the low bits of that are.
template <class To, class From>
To truncate(From x) {
  constexpr From kTwo63 = static_cast<From>(0x1p63);
  if constexpr (sizeof(To) == 8 && std::is_unsigned_v<To>) {
    if (x >= kTwo63 && x < 2 * kTwo63) {
      return static_cast<To>(static_cast<int64_t>(x - kTwo63)) + (To{1} << 63);
    }
  }
  if constexpr (sizeof(To) == 4 && std::is_signed_v<To>) {
    constexpr From kTwo31 = static_cast<From>(0x1p31);
    bool fits = x >= -kTwo31 && x < kTwo31;
    return fits ? static_cast<To>(x) : INT32_MIN;
  }
  bool fits = x >= -kTwo63 && x < kTwo63;
  return static_cast<To>(fits ? static_cast<int64_t>(x) : INT64_MIN);
}

template <class To>
struct CastTo {
  template <class From>
  To operator()(From from) const {
    auto x = ComputeType<From>(from);
    using C = decltype(x);
    if constexpr (std::is_same_v<To, bool>) {
      return x != C(0);
    } else if constexpr (std::is_floating_point_v<C> && std::is_integral_v<To>) {
      return truncate<To>(x);
    } else if constexpr (!std::is_floating_point_v<C> && sizeof(To) == 2 &&
                         !std::is_integral_v<To>) {
      return To(static_cast<double>(x));
    } else {
      return static_cast<To>(x);
    }
  }
};

[[noreturn]] void bad_number(std::string_view text, DType dtype) {
  fail(ErrorKind::kExecution, "got the string '", text.substr(0, 64), "', expected a number for ",
       name_of(dtype));
}

template <class To>
struct ParseTo {
  To operator()(StringRef from) const {
    std::string_view text = from.view();
    constexpr std::string_view kSpace = " \t\r\n";
    while (!text.empty() && kSpace.find(text.front()) != kSpace.npos) text.remove_prefix(1);
    while (!text.empty() && kSpace.find(text.back()) != kSpace.npos) text.remove_suffix(1);
    if (!text.empty() && text.front() == '+') text.remove_prefix(1);
    const char* end = text.data() + text.size();
    if constexpr (std::is_integral_v<To> && !std::is_same_v<To, bool>) {
      To whole{};
      auto [stop, error] = std::from_chars(text.data(), end, whole);
      if (error == std::errc() && stop == end) return whole;
    }
    double number = 0;
    auto [stop, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || stop != end) bad_number(from.view(), kDTypeOf<To>);
    return CastTo<To>()(number);
  }
};

ElementLoop cast_loop(DType from, DType to) {
  ElementLoop loop = nullptr;
  visit_dtype(NumbersAndBool{}, to, [&]<class To>() {
    if (from == DType::kString) loop = unary_loop<ParseTo<To>, StringRef, To>;
    visit_dtype(NumbersAndBool{}, from,
                [&]<class From>() { loop = unary_loop<CastTo<To>, From, To>; });
  });
  return loop;
}

ElementLoop vector_loop(DType from, DType to, Isa isa) {
  const CastKernels& kernels = HEADRACE_KERNELS(isa, cast_kernels);
  if (from == DType::kF32 && to == DType::kF16) return kernels.f32_to_f16;
  if (from == DType::kF16 && to == DType::kF32) return kernels.f16_to_f32;
  if (from == DType::kF32 && to == DType::kBF16) return kernels.f32_to_bf16;
  if (from == DType::kBF16 && to == DType::kF32) return kernels.bf16_to_f32;
  return nullptr;
}

class CastOp : public Op {
 public:
  // No loop: the bytes stay what they are.
  explicit CastOp(ElementLoop loop) : loop_(loop) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }
  void run(const OpRun& run) const override {
    run_broadcast(run, {&run.input(0), 1}, run.output(0), loop_);
  }
  int alias() const override { return loop_ == nullptr ? 0 : -1; }
  bool element_wise() const override { return true; }

 private:
  ElementLoop loop_;
};

std::unique_ptr<Op> make_cast(const NodeSpec& spec) {
  DType from = spec.input_dtypes.at(0);
  DType to = spec.output_dtypes.at(0);
  if (from == to) return std::make_unique<CastOp>(nullptr);
  ElementLoop loop = vector_loop(from, to, spec.isa);
  if (loop == nullptr) loop = cast_loop(from, to);
  if (loop == nullptr) {
    spec.unsupported(str("no kernel from ", name_of(from), " to ", name_of(to)));
  }
  return std::make_unique<CastOp>(loop);
}

std::unique_ptr<Op> make_bit_cast(const NodeSpec& spec) {
  DType from = spec.input_dtypes.at(0);
  DType to = spec.output_dtypes.at(0);
  if (size_of(from) != size_of(to) || (from == DType::kString) != (to == DType::kString)) {
    spec.invalid(str("got ", name_of(from), " to ", name_of(to), ", expected dtypes of one size"));
  }
  return std::make_unique<CastOp>(nullptr);
}

}  // namespace

void register_cast(OpRegistry& registry) {
  registry.add("Cast", make_cast);
  registry.add("CastLike", make_cast);
  registry.add("BitCast", make_bit_cast);
}

}  // namespace headrace
