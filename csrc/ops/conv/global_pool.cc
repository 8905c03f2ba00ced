// GlobalAveragePool, GlobalMaxPool and GlobalLpPool: one number per channel.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/visit.h"
#include "ops/conv/pool.h"

namespace headrace {
namespace {

// Chains that a channel is summed in, combined in one order in the end.
constexpr int64_t kChains = 8;

template <class Sum, class T, class Step, class Join>
Sum reduce(const T* x, int64_t n, Sum first, Step step, Join join) {
  Sum chains[kChains];
  std::fill_n(chains, kChains, first);
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t c = 0; c < kChains; ++c) chains[c] = step(chains[c], x[i + c]);
  }
  for (int64_t c = 0; i + c < n; ++c) chains[c] = step(chains[c], x[i + c]);
  for (int64_t width = kChains / 2; width > 0; width /= 2) {
    for (int64_t c = 0; c < width; ++c) chains[c] = join(chains[c], chains[c + width]);
  }
  return chains[0];
}

template <class T>
T average_of(const T* x, int64_t n, int64_t) {
  using Sum = ComputeType<T>;
  auto add = [](Sum a, auto b) { return a + static_cast<Sum>(b); };
  return static_cast<T>(reduce(x, n, Sum{0}, add, add) / static_cast<Sum>(n));
}

template <class T>
T max_of(const T* x, int64_t n, int64_t) {
  using Sum = ComputeType<T>;
  auto greater = [](Sum a, auto b) {
    auto v = static_cast<Sum>(b);
    return v > a || v != v ? v : a;  // NaN stays
  };
  return static_cast<T>(reduce(x, n, -std::numeric_limits<Sum>::infinity(), greater, greater));
}

template <class T>
T norm_of(const T* x, int64_t n, int64_t p) {
  using Sum = ComputeType<T>;
  auto power = static_cast<Sum>(p);
  auto step = [=](Sum a, T b) { return a + std::pow(std::abs(static_cast<Sum>(b)), power); };
  auto add = [](Sum a, Sum b) { return a + b; };
  return static_cast<T>(std::pow(reduce(x, n, Sum{0}, step, add), Sum{1} / power));
}

template <class T>
using PlaneReduce = T (*)(const T* x, int64_t n, int64_t p);

template <class T>
class GlobalPool : public Op {
 public:
  GlobalPool(PlaneReduce<T> reduce, int64_t p) : reduce_(reduce), p_(p) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    if (x.rank() < 2) {
      fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", expected [N, C, ...]");
    }
    outputs[0] = Shape{x[0], x[1]};
    for (int axis = 2; axis < x.rank(); ++axis) outputs[0].push_back(1);
  }

  void run(const OpRun& run) const override {
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView x = run.input(0).view(r);
      int64_t planes = x.shape[0] * x.shape[1];
      int64_t size = x.shape.elements(2, x.shape.rank());
      T* y = run.output(0).view(r).as<T>();
      constexpr int64_t kRangeSize = 1 << 15;
      int64_t min_planes = kRangeSize / std::max<int64_t>(size, 1);
      run.parallel_ranges(planes, min_planes, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) y[i] = reduce_(x.as<T>() + i * size, size, p_);
      });
    }
  }

 private:
  PlaneReduce<T> reduce_;
  int64_t p_;
};

// `pick` gives the function that reduces a plane of T.
template <class Pick>
std::unique_ptr<Op> make(const NodeSpec& spec, Pick pick) {
  std::unique_ptr<Op> op;
  auto make_typed = [&]<class T>() {
    op = std::make_unique<GlobalPool<T>>(pick.template operator()<T>(), spec.int_or("p", 2));
  };
  if (!visit_dtype(Floats{}, spec.input_dtypes[0], make_typed)) {
    spec.unsupported(str("got dtype ", name_of(spec.input_dtypes[0]), ", expected a float"));
  }
  return op;
}

std::unique_ptr<Op> make_global_average_pool(const NodeSpec& spec) {
  return make(spec, []<class T>() -> PlaneReduce<T> { return average_of<T>; });
}
std::unique_ptr<Op> make_global_max_pool(const NodeSpec& spec) {
  return make(spec, []<class T>() -> PlaneReduce<T> { return max_of<T>; });
}
std::unique_ptr<Op> make_global_lp_pool(const NodeSpec& spec) {
  if (spec.opset < 2) spec.unsupported("opset 1 has no integral p");
  return make(spec, []<class T>() -> PlaneReduce<T> { return norm_of<T>; });
}

}  // namespace

void register_global_pools(OpRegistry& registry) {
  registry.add("GlobalAveragePool", make_global_average_pool);
  registry.add("GlobalMaxPool", make_global_max_pool);
  registry.add("GlobalLpPool", make_global_lp_pool);
}

}  // namespace headrace
