// CumSum and CumProd.
#include "ops/index/index_ops.h"

namespace headrace {
namespace {

template <class C>
using Wrap =
    std::conditional_t<std::is_integral_v<C>, std::make_unsigned<C>, std::type_identity<C>>::type;

struct ScanArgs {
  const void* in;
  void* out;
  int64_t outer, length, inner;
  bool exclusive, reverse;
};

template <class T, bool kProduct>
void scan(const ScanArgs& args) {
  using C = Wrap<ComputeType<T>>;
  const T* in = static_cast<const T*>(args.in);
  T* out = static_cast<T*>(args.out);
  for (int64_t o = 0; o < args.outer; ++o) {
    for (int64_t i = 0; i < args.inner; ++i) {
      int64_t base = o * args.length * args.inner + i;
      C total = C(kProduct ? 1 : 0);
      for (int64_t n = 0; n < args.length; ++n) {
        int64_t at = base + (args.reverse ? args.length - 1 - n : n) * args.inner;
        C x = C(in[at]);  // read first: out may be in
        if (args.exclusive) out[at] = static_cast<T>(total);
        total = kProduct ? total * x : total + x;
        if (!args.exclusive) out[at] = static_cast<T>(total);
      }
    }
  }
}

class ScanOp : public Op {
 public:
  ScanOp(const NodeSpec& spec, void (*loop)(const ScanArgs&))
      : exclusive_(spec.int_or("exclusive", 0) != 0),
        reverse_(spec.int_or("reverse", 0) != 0),
        loop_(loop) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    if (inputs[1].elements() != 1) {
      fail(ErrorKind::kShapeMismatch, "got an axis of shape ", to_string(inputs[1].shape),
           ", expected a scalar");
    }
    normalize_axis(int_at(inputs[1], 0), inputs[0].shape.rank());
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      int axis = normalize_axis(int_at(run.input(1).view(r), 0), in.shape.rank());
      loop_({in.data, run.output(0).view(r).data, in.shape.elements(0, axis), in.shape[axis],
             in.shape.elements(axis + 1, in.shape.rank()), exclusive_, reverse_});
    });
  }

  bool can_overwrite(size_t input) const override { return input == 0; }

 private:
  bool exclusive_;
  bool reverse_;
  void (*loop_)(const ScanArgs&);
};

template <bool kProduct>
std::unique_ptr<Op> make_scan(const NodeSpec& spec) {
  require_inputs(spec, 2);
  require_index_dtype(spec, 1);
  void (*loop)(const ScanArgs&) = nullptr;
  visit_dtype(Types<float, double, Half, BFloat16, int32_t, int64_t, uint32_t, uint64_t>{},
              spec.input_dtypes[0], [&]<class T>() { loop = scan<T, kProduct>; });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<ScanOp>(spec, loop);
}

}  // namespace

void register_scan(OpRegistry& registry) {
  registry.add("CumSum", make_scan<false>);
  registry.add("CumProd", make_scan<true>);
}

}  // namespace headrace
