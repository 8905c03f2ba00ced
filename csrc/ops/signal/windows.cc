// HannWindow, HammingWindow, BlackmanWindow.
#include <cmath>
#include <numbers>

#include "ops/signal/signal.h"

namespace headrace {
namespace {

// A sum of cosines: a0 - a1 cos(t) + a2 cos(2t).
struct Coefficients {
  double a0, a1, a2;
};

class Window : public PerRequestOp {
 public:
  Window(const NodeSpec& spec, Coefficients coefficients)
      : coefficients_(coefficients), periodic_(spec.int_or("periodic", 1) != 0) {
    require_inputs(spec, 1);
    if (spec.input_dtypes[0] != DType::kI64 && spec.input_dtypes[0] != DType::kI32) {
      unsupported_dtype(spec, 0);
    }
    bool known = visit_dtype(Floats{}, spec.output_dtypes.at(0), [&]<class T>() {
      store_ = [](void* out, int64_t i, double value) { static_cast<T*>(out)[i] = T(value); };
    });
    if (!known) spec.unsupported(str("output of dtype ", name_of(spec.output_dtypes[0])));
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    int64_t size = inputs[0].elements() == 1 ? int_at(inputs[0], 0) : -1;
    if (size < 0) fail(ErrorKind::kShapeMismatch, "got size ", size, ", expected at least 0");
    outputs[0] = {size};
    require_sane(outputs[0]);
  }

  void run_one(InputViews, OutputViews outputs) const override {
    int64_t size = outputs[0].elements();
    auto period = static_cast<double>(periodic_ ? size : size - 1);
    for (int64_t i = 0; i < size; ++i) {
      double t = period > 0 ? 2 * std::numbers::pi * static_cast<double>(i) / period : 0;
      double value =
          coefficients_.a0 - coefficients_.a1 * std::cos(t) + coefficients_.a2 * std::cos(2 * t);
      store_(outputs[0].data, i, value);
    }
  }

 private:
  Coefficients coefficients_;
  bool periodic_;
  void (*store_)(void*, int64_t, double) = nullptr;
};

std::unique_ptr<Op> make_hann(const NodeSpec& spec) {
  return std::make_unique<Window>(spec, Coefficients{0.5, 0.5, 0});
}
std::unique_ptr<Op> make_hamming(const NodeSpec& spec) {
  return std::make_unique<Window>(spec, Coefficients{25.0 / 46.0, 21.0 / 46.0, 0});
}
std::unique_ptr<Op> make_blackman(const NodeSpec& spec) {
  return std::make_unique<Window>(spec, Coefficients{0.42, 0.5, 0.08});
}

}  // namespace

void register_windows(OpRegistry& registry) {
  registry.add("HannWindow", make_hann);
  registry.add("HammingWindow", make_hamming);
  registry.add("BlackmanWindow", make_blackman);
}

}  // namespace headrace
