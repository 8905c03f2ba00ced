// MaxPool, AveragePool and LpPool.
//
// A row of output pixels is reduced tap by tap, so that the inner loop runs along memory; each
// pixel sees its taps in their order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/visit.h"
#include "ops/conv/pool.h"
#include "ops/conv/window.h"

namespace headrace {
namespace {

// One Request's pooling. Lies in scratch memory.
struct PoolProblem {
  Windows windows;
  int64_t first_plane;
  const void* x;
  void* y;
  int64_t* indices;  // null if nobody wants them
};

// The output positions along the last axis whose tap `kw` falls inside the input.
Taps columns_inside(const Windows& w, int64_t kw) {
  int64_t shift = kw * w.dilation[2] - w.pad_begin[2];
  int64_t s = w.stride[2];
  int64_t begin = shift >= 0 ? 0 : (-shift + s - 1) / s;
  int64_t end = shift >= w.in[2] ? 0 : (w.in[2] - shift + s - 1) / s;
  end = std::min(end, w.out[2]);
  return {std::min(begin, end), end};
}

template <class T>
struct MaxReduce {
  using Sum = T;
  Sum first() const {
    if constexpr (std::numeric_limits<T>::has_infinity) return -std::numeric_limits<T>::infinity();
    return std::numeric_limits<T>::lowest();
  }
  // NaN stays.
  Sum step(Sum sum, T x) const { return x > sum || x != x ? x : sum; }
  T done(Sum sum, int64_t) const { return sum; }
};

template <class T>
struct AverageReduce {
  using Sum = ComputeType<T>;
  Sum first() const { return Sum{0}; }
  Sum step(Sum sum, T x) const { return sum + static_cast<Sum>(x); }
  T done(Sum sum, int64_t count) const { return static_cast<T>(sum / static_cast<Sum>(count)); }
};

template <class T>
struct LpReduce {
  using Sum = ComputeType<T>;
  int64_t p;
  Sum first() const { return Sum{0}; }
  Sum step(Sum sum, T x) const {
    Sum a = std::abs(static_cast<Sum>(x));
    return sum + (p == 1 ? a : p == 2 ? a * a : std::pow(a, static_cast<Sum>(p)));
  }
  T done(Sum sum, int64_t) const {
    return static_cast<T>(p == 1   ? sum
                          : p == 2 ? std::sqrt(sum)
                                   : std::pow(sum, Sum{1} / static_cast<Sum>(p)));
  }
};

// Reduces one row of output pixels of one channel into `sums`.
template <class T, class Reduce>
void reduce_row(const Windows& w, const Reduce& reduce, const T* x, int64_t depth, int64_t height,
                typename Reduce::Sum* sums) {
  std::fill_n(sums, w.out[2], reduce.first());
  Taps deep = taps_inside(w, 0, depth, w.in[0]);
  Taps high = taps_inside(w, 1, height, w.in[1]);
  for (int64_t kd = deep.begin; kd < deep.end; ++kd) {
    int64_t d = depth * w.stride[0] - w.pad_begin[0] + kd * w.dilation[0];
    for (int64_t kh = high.begin; kh < high.end; ++kh) {
      int64_t h = height * w.stride[1] - w.pad_begin[1] + kh * w.dilation[1];
      const T* row = x + (d * w.in[1] + h) * w.in[2];
      for (int64_t kw = 0; kw < w.kernel[2]; ++kw) {
        Taps cols = columns_inside(w, kw);
        int64_t shift = kw * w.dilation[2] - w.pad_begin[2];
        if (w.stride[2] == 1) {
          for (int64_t i = cols.begin; i < cols.end; ++i) {
            sums[i] = reduce.step(sums[i], row[i + shift]);
          }
        } else {
          for (int64_t i = cols.begin; i < cols.end; ++i) {
            sums[i] = reduce.step(sums[i], row[i * w.stride[2] + shift]);
          }
        }
      }
    }
  }
}

template <class T, class Reduce>
class Pool : public Op {
 public:
  Pool(const NodeSpec& spec, const Reduce& reduce)
      : window_(window_of(spec)),
        reduce_(reduce),
        count_pads_(spec.int_or("count_include_pad", 0) != 0),
        column_major_(spec.int_or("storage_order", 0) != 0) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    outputs[0] = output_shape(windows_over(window_, x), x, x.rank() > 1 ? x[1] : 0);
    if (outputs.size() > 1) outputs[1] = outputs[0];
  }

  void run(const OpRun& run) const override {
    auto requests = static_cast<int64_t>(run.requests());
    auto* problems = run.scratch_of<PoolProblem>(requests);
    int64_t planes = 0;
    int64_t width = 0;
    int64_t work = 1;
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView x = run.input(0).view(r);
      Windows w = windows_over(window_, x.shape);
      problems[r] = {w, planes, x.data, run.output(0).view(r).data, nullptr};
      if (run.has_output(1)) problems[r].indices = run.output(1).view(r).as<int64_t>();
      planes += x.shape[0] * x.shape[1];
      width = std::max(width, w.out[2]);
      work = std::max(work, w.out_size() * w.taps());
    }
    auto* sums = run.scratch_of<typename Reduce::Sum>(width * run.threads());
    constexpr int64_t kRangeWork = 1 << 16;
    run.parallel_ranges(planes, kRangeWork / work, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const PoolProblem* next = std::upper_bound(
            problems, problems + requests, plane,
            [](int64_t value, const PoolProblem& p) { return value < p.first_plane; });
        const PoolProblem& p = next[-1];
        pool_plane(p, plane - p.first_plane, sums + thread * width);
        if (p.indices != nullptr) find_plane(p, plane - p.first_plane);
      }
    });
  }

 private:
  void pool_plane(const PoolProblem& p, int64_t plane, typename Reduce::Sum* sums) const {
    const Windows& w = p.windows;
    const T* x = static_cast<const T*>(p.x) + plane * w.in_size();
    T* y = static_cast<T*>(p.y) + plane * w.out_size();
    for (int64_t depth = 0; depth < w.out[0]; ++depth) {
      for (int64_t height = 0; height < w.out[1]; ++height, y += w.out[2]) {
        reduce_row(w, reduce_, x, depth, height, sums);
        auto count = [&](int axis, int64_t at) { return counted_taps(w, axis, at, count_pads_); };
        int64_t rows = count(0, depth) * count(1, height);
        for (int64_t i = 0; i < w.out[2]; ++i) y[i] = reduce_.done(sums[i], rows * count(2, i));
      }
    }
  }

  // Where in X each maximum stands: the first of equal ones.
  void find_plane(const PoolProblem& p, int64_t plane) const {
    const Windows& w = p.windows;
    int64_t* index = p.indices + plane * w.out_size();
    for (int64_t d = 0; d < w.out[0]; ++d) {
      for (int64_t h = 0; h < w.out[1]; ++h) {
        for (int64_t i = 0; i < w.out[2]; ++i) {
          *index++ = plane * w.in_size() + find(p, plane, d, h, i);
        }
      }
    }
  }

  int64_t find(const PoolProblem& p, int64_t plane, int64_t depth, int64_t height,
               int64_t col) const {
    const Windows& w = p.windows;
    const T* x = static_cast<const T*>(p.x) + plane * w.in_size();
    const int64_t out[] = {depth, height, col};
    Taps taps[kSpatial];
    int64_t base[kSpatial];
    for (int axis = 0; axis < kSpatial; ++axis) {
      taps[axis] = taps_inside(w, axis, out[axis], w.in[axis]);
      base[axis] = out[axis] * w.stride[axis] - w.pad_begin[axis];
    }
    int64_t best = -1;
    int64_t index = 0;
    for (int64_t kd = taps[0].begin; kd < taps[0].end; ++kd) {
      for (int64_t kh = taps[1].begin; kh < taps[1].end; ++kh) {
        for (int64_t kw = taps[2].begin; kw < taps[2].end; ++kw) {
          int64_t d = base[0] + kd * w.dilation[0];
          int64_t h = base[1] + kh * w.dilation[1];
          int64_t c = base[2] + kw * w.dilation[2];
          int64_t at = (d * w.in[1] + h) * w.in[2] + c;
          bool better = best < 0 || x[at] > x[best] || (x[at] != x[at] && x[best] == x[best]);
          if (!better) continue;
          best = at;
          index = column_major_ ? index_column_major(w, d, h, c) : at;
        }
      }
    }
    return index;
  }

  // storage_order 1: the first spatial axis runs fastest.
  int64_t index_column_major(const Windows& w, int64_t d, int64_t h, int64_t c) const {
    if (window_.rank == 1) return c;
    if (window_.rank == 2) return h + c * w.in[1];
    return d + h * w.in[0] + c * w.in[0] * w.in[1];
  }

  WindowSpec window_;
  Reduce reduce_;
  bool count_pads_;
  bool column_major_;
};

void require_kernel(const NodeSpec& spec) {
  if (spec.ints("kernel_shape").empty()) spec.invalid("got no kernel_shape");
}

std::unique_ptr<Op> make_max_pool(const NodeSpec& spec) {
  require_kernel(spec);
  std::unique_ptr<Op> op;
  auto make = [&]<class T>() {
    op = std::make_unique<Pool<T, MaxReduce<T>>>(spec, MaxReduce<T>{});
  };
  if (!visit_dtype(Types<float, double, int8_t, uint8_t>{}, spec.input_dtypes[0], make)) {
    spec.unsupported(str("got dtype ", name_of(spec.input_dtypes[0]),
                         ", expected float32, float64, int8 or uint8"));
  }
  return op;
}

std::unique_ptr<Op> make_average_pool(const NodeSpec& spec) {
  require_kernel(spec);
  std::unique_ptr<Op> op;
  auto make = [&]<class T>() {
    op = std::make_unique<Pool<T, AverageReduce<T>>>(spec, AverageReduce<T>{});
  };
  if (!visit_dtype(Floats{}, spec.input_dtypes[0], make)) {
    spec.unsupported(str("got dtype ", name_of(spec.input_dtypes[0]), ", expected a float"));
  }
  return op;
}

std::unique_ptr<Op> make_lp_pool(const NodeSpec& spec) {
  require_kernel(spec);
  if (spec.opset < 2) spec.unsupported("opset 1 has no integral p");
  std::unique_ptr<Op> op;
  auto make = [&]<class T>() {
    op = std::make_unique<Pool<T, LpReduce<T>>>(spec, LpReduce<T>{spec.int_or("p", 2)});
  };
  if (!visit_dtype(Floats{}, spec.input_dtypes[0], make)) {
    spec.unsupported(str("got dtype ", name_of(spec.input_dtypes[0]), ", expected a float"));
  }
  return op;
}

}  // namespace

void register_pools(OpRegistry& registry) {
  registry.add("MaxPool", make_max_pool);
  registry.add("AveragePool", make_average_pool);
  registry.add("LpPool", make_lp_pool);
}

}  // namespace headrace
