// ReduceSum and its kin.
#include "ops/reduce/reduce.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/strided.h"
#include "core/visit.h"

namespace headrace {
namespace {

// Each kind: the empty reduction, one element taken, and the result of the accumulator.
struct SumKind {
  template <class C>
  static C empty() {
    return C(0);
  }
  template <class C>
  static C take(C acc, C x) {
    if constexpr (std::is_integral_v<C>) {
      using U = std::make_unsigned_t<C>;
      return static_cast<C>(static_cast<U>(acc) + static_cast<U>(x));
    } else {
      return acc + x;
    }
  }
  template <class C>
  static C finish(C acc, int64_t) {
    return acc;
  }
};
struct MeanKind : SumKind {
  template <class C>
  static C finish(C acc, int64_t count) {
    if constexpr (std::is_integral_v<C>) {
      return count == 0 ? C(0) : static_cast<C>(acc / static_cast<C>(count));
    } else {
      return acc / static_cast<C>(count);
    }
  }
};
struct ProdKind : SumKind {
  template <class C>
  static C empty() {
    return C(1);
  }
  template <class C>
  static C take(C acc, C x) {
    if constexpr (std::is_integral_v<C>) {
      return static_cast<C>(static_cast<uint64_t>(acc) * static_cast<uint64_t>(x));
    } else {
      return acc * x;
    }
  }
};
struct L1Kind : SumKind {
  template <class C>
  static C take(C acc, C x) {
    if constexpr (std::is_integral_v<C>) {
      // The least number has no counterpart: it wraps, as sums do.
      return SumKind::take(acc, x < 0 ? static_cast<C>(0 - static_cast<uint64_t>(x)) : x);
    } else {
      return SumKind::take(acc, x < C(0) ? -x : x);
    }
  }
};
struct SumSquareKind : SumKind {
  template <class C>
  static C take(C acc, C x) {
    return SumKind::take(acc, ProdKind::take(x, x));
  }
};
struct L2Kind : SumSquareKind {
  template <class C>
  static C finish(C acc, int64_t) {
    if constexpr (std::is_integral_v<C>) return static_cast<C>(std::sqrt(static_cast<double>(acc)));
    return static_cast<C>(std::sqrt(acc));
  }
};
struct LogSumKind : SumKind {
  template <class C>
  static C finish(C acc, int64_t) {
    if constexpr (std::is_integral_v<C>) {
      return acc <= 0 ? C(0) : static_cast<C>(std::log(static_cast<double>(acc)));
    } else {
      return std::log(acc);
    }
  }
};
struct MaxKind : SumKind {
  template <class C>
  static C empty() {
    using Limits = std::numeric_limits<C>;
    return Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
  }
  template <class C>
  static C take(C acc, C x) {
    return acc > x || acc != acc ? acc : x;
  }
};
struct MinKind : SumKind {
  template <class C>
  static C empty() {
    using Limits = std::numeric_limits<C>;
    return Limits::has_infinity ? Limits::infinity() : Limits::max();
  }
  template <class C>
  static C take(C acc, C x) {
    return acc < x || acc != acc ? acc : x;
  }
};

template <class Kind, class T>
struct LoopsOf {
  using C = ComputeType<T>;
  static void init(void* accumulators, int64_t width) {
    std::fill_n(static_cast<C*>(accumulators), width, Kind::template empty<C>());
  }
  static void row(void* accumulator, const void* in, int64_t n, int64_t step) {
    C acc = *static_cast<C*>(accumulator);
    const T* x = static_cast<const T*>(in);
    for (int64_t i = 0; i < n; ++i) acc = Kind::template take<C>(acc, C(x[i * step]));
    *static_cast<C*>(accumulator) = acc;
  }
  static void column(void* accumulators, const void* in, int64_t width) {
    C* acc = static_cast<C*>(accumulators);
    const T* x = static_cast<const T*>(in);
    for (int64_t i = 0; i < width; ++i) acc[i] = Kind::template take<C>(acc[i], C(x[i]));
  }
  static void finish(const void* accumulators, void* out, int64_t width, int64_t count) {
    const C* acc = static_cast<const C*>(accumulators);
    T* to = static_cast<T*>(out);
    for (int64_t i = 0; i < width; ++i) to[i] = T(Kind::template finish<C>(acc[i], count));
  }
  static constexpr ReduceLoops loops = {sizeof(C), init, row, column, finish};
};

// log(sum(exp(x))) in one pass: the sum is kept relative to the largest element so far.
template <class T>
struct LogSumExpLoops {
  using C = std::conditional_t<std::is_integral_v<T>, double, ComputeType<T>>;
  struct Acc {
    C max;
    C sum;
    void take(C x) {
      if (x == -std::numeric_limits<C>::infinity()) return;
      if (x == max) {
        sum += 1;
      } else if (x > max) {
        sum = sum * std::exp(max - x) + 1;
        max = x;
      } else {
        sum += std::exp(x - max);
      }
    }
  };
  static void init(void* accumulators, int64_t width) {
    std::fill_n(static_cast<Acc*>(accumulators), width,
                Acc{-std::numeric_limits<C>::infinity(), 0});
  }
  static void row(void* accumulator, const void* in, int64_t n, int64_t step) {
    Acc acc = *static_cast<Acc*>(accumulator);
    for (int64_t i = 0; i < n; ++i) acc.take(C(static_cast<const T*>(in)[i * step]));
    *static_cast<Acc*>(accumulator) = acc;
  }
  static void column(void* accumulators, const void* in, int64_t width) {
    Acc* acc = static_cast<Acc*>(accumulators);
    for (int64_t i = 0; i < width; ++i) acc[i].take(C(static_cast<const T*>(in)[i]));
  }
  static void finish(const void* accumulators, void* out, int64_t width, int64_t) {
    const Acc* acc = static_cast<const Acc*>(accumulators);
    for (int64_t i = 0; i < width; ++i) {
      static_cast<T*>(out)[i] = static_cast<T>(std::log(acc[i].sum) + acc[i].max);
    }
  }
  static constexpr ReduceLoops loops = {sizeof(Acc), init, row, column, finish};
};

class Reduce : public Op {
 public:
  Reduce(const NodeSpec& spec, ReduceLoops loops, int64_t element_bytes)
      : axes_(spec, "axes", 1),
        keep_dims_(spec.int_or("keepdims", 1) != 0),
        empty_is_none_(spec.int_or("noop_with_empty_axes", 0) != 0),
        loops_(loops),
        element_bytes_(element_bytes) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    uint32_t mask = reduced_axes(axes_.get(inputs), from.rank());
    outputs[0] = {};
    for (int axis = 0; axis < from.rank(); ++axis) {
      bool reduced = (mask >> axis & 1) != 0;
      if (!reduced || keep_dims_) outputs[0].push_back(reduced ? 1 : from[axis]);
    }
  }

  void run(const OpRun& run) const override {
    bool split = static_cast<int>(run.requests()) < run.threads();
    if (!split) return run.parallel_requests([&](size_t r) { reduce(run, r, false); });
    for (size_t r = 0; r < run.requests(); ++r) reduce(run, r, true);
  }

 private:
  // Accumulators side by side: long pieces of every row, and they stay in the first-level cache.
  static constexpr int64_t kAccumulatorBytes = 8192;
  // No narrower for the sake of another thread: a few cache lines of every row.
  static constexpr int64_t kMinBlock = 64;

  uint32_t reduced_axes(std::span<const int64_t> axes, int rank) const {
    if (axes.empty()) return empty_is_none_ ? 0 : (1u << rank) - 1;
    uint32_t mask = 0;
    for (int64_t axis : axes) mask |= 1u << normalize_axis(axis, rank);
    return mask;
  }

  void reduce(const OpRun& run, size_t r, bool split) const {
    TensorView in = run.input(0).view(r);
    TensorView out = run.output(0).view(r);
    ConstTensorView inputs[2] = {in, {}};
    if (run.has_input(1)) inputs[1] = run.input(1).view(r);
    uint32_t mask = reduced_axes(axes_.get(inputs), in.shape.rank());
    Strides dense = strides_of(in.shape);
    Shape kept, gone;
    Strides kept_strides, gone_strides;
    for (int axis = 0; axis < in.shape.rank(); ++axis) {
      bool reduced = (mask >> axis & 1) != 0;
      Shape& side = reduced ? gone : kept;
      (reduced ? gone_strides : kept_strides)[side.rank()] = dense[axis];
      side.push_back(in.shape[axis]);
    }
    if (out.elements() == 0) return;
    Nest outputs(kept, {&kept_strides, 1});
    Nest elements(gone, {&gone_strides, 1});
    int64_t count = gone.elements();
    int64_t block = block_of(outputs, split ? run.threads() : 1);
    auto range = [&](int64_t begin, int64_t end, int) {
      reduce_range(in, out, outputs, elements, count, block, begin, end);
    };
    constexpr int64_t kMinElements = 16384;  // below, another thread costs more than it saves
    int64_t pieces = outputs.outer() * pieces_of(outputs, block);
    int64_t min_pieces = kMinElements / std::max<int64_t>(1, count * block);
    if (split) return run.parallel_ranges(pieces, std::max<int64_t>(1, min_pieces), range);
    range(0, pieces, 0);
  }

  // How many outputs are worked on together. Every output has its own chain of additions, so this
  // changes no bits. Side by side where neighbouring outputs come from neighbouring elements, else
  // one by one.
  int64_t block_of(const Nest& outputs, int threads) const {
    if (outputs.inner_stride(0) != 1) return 1;
    int64_t most = kAccumulatorBytes / loops_.accumulator_bytes;
    int64_t share = outputs.outer() >= threads ? outputs.inner() : outputs.inner() / threads;
    return std::min(outputs.inner(), std::clamp(share, kMinBlock, most));
  }
  static int64_t pieces_of(const Nest& outputs, int64_t block) {
    return (outputs.inner() + block - 1) / block;
  }

  // Pieces [begin, end): blocks of outputs of the outer iterations, one after the other.
  void reduce_range(const TensorView& in, const TensorView& out, const Nest& outputs,
                    const Nest& elements, int64_t count, int64_t block, int64_t begin,
                    int64_t end) const {
    alignas(64) std::byte accumulators[kAccumulatorBytes];
    int64_t pieces = pieces_of(outputs, block);
    int64_t piece = begin;
    outputs.walk(begin / pieces, (end + pieces - 1) / pieces, [&](const int64_t* at) {
      int64_t outer = piece / pieces;
      const auto* base = static_cast<const std::byte*>(in.data) + at[0] * element_bytes_;
      auto* to = static_cast<std::byte*>(out.data) + outer * outputs.inner() * element_bytes_;
      for (int64_t stop = std::min(end, (outer + 1) * pieces); piece < stop; ++piece) {
        int64_t i = (piece - outer * pieces) * block;
        int64_t width = std::min(block, outputs.inner() - i);
        const std::byte* from = base + i * outputs.inner_stride(0) * element_bytes_;
        loops_.init(accumulators, width);
        elements.walk(0, elements.outer(), [&](const int64_t* offsets) {
          const std::byte* first = from + offsets[0] * element_bytes_;
          int64_t step = elements.inner_stride(0);
          if (block == 1) return loops_.row(accumulators, first, elements.inner(), step);
          for (int64_t j = 0; j < elements.inner(); ++j) {
            loops_.column(accumulators, first + j * step * element_bytes_, width);
          }
        });
        loops_.finish(accumulators, to + i * element_bytes_, width, count);
      }
    });
  }

  IntList axes_;
  bool keep_dims_;
  bool empty_is_none_;
  ReduceLoops loops_;
  int64_t element_bytes_;
};

using ReducedTypes = Types<float, double, Half, BFloat16, int32_t, int64_t, uint32_t, uint64_t>;
using OrderedTypes = Types<float, double, Half, BFloat16, int32_t, int64_t, uint32_t, uint64_t,
                           int8_t, uint8_t, bool>;
using F32Pair = ReduceKernels::Pair ReduceKernels::*;

std::unique_ptr<Op> make(const NodeSpec& spec, const ReduceLoops* loops, F32Pair f32 = nullptr) {
  if (loops == nullptr) unsupported_dtype(spec, 0);
  ReduceLoops chosen = *loops;
  if (f32 != nullptr && spec.input_dtypes[0] == DType::kF32) {
    const ReduceKernels::Pair& pair = HEADRACE_KERNELS(spec.isa, reduce_kernels).*f32;
    chosen.row = pair.row;
    chosen.column = pair.column;
  }
  return std::make_unique<Reduce>(spec, chosen, size_of(spec.input_dtypes[0]));
}

template <class Kind, class DTypes, F32Pair f32>
std::unique_ptr<Op> make_reduce(const NodeSpec& spec) {
  const ReduceLoops* loops = nullptr;
  visit_dtype(DTypes{}, spec.input_dtypes.at(0),
              [&]<class T>() { loops = &LoopsOf<Kind, T>::loops; });
  return make(spec, loops, f32);
}

std::unique_ptr<Op> make_log_sum_exp(const NodeSpec& spec) {
  const ReduceLoops* loops = nullptr;
  visit_dtype(ReducedTypes{}, spec.input_dtypes.at(0),
              [&]<class T>() { loops = &LogSumExpLoops<T>::loops; });
  return make(spec, loops);
}

}  // namespace

void register_reduce(OpRegistry& registry) {
  using K = ReduceKernels;
  registry.add("ReduceSum", make_reduce<SumKind, ReducedTypes, &K::sum>);
  registry.add("ReduceMean", make_reduce<MeanKind, ReducedTypes, &K::sum>);
  registry.add("ReduceMax", make_reduce<MaxKind, OrderedTypes, &K::max>);
  registry.add("ReduceMin", make_reduce<MinKind, OrderedTypes, &K::min>);
  registry.add("ReduceProd", make_reduce<ProdKind, ReducedTypes, nullptr>);
  registry.add("ReduceL1", make_reduce<L1Kind, ReducedTypes, &K::sum_abs>);
  registry.add("ReduceL2", make_reduce<L2Kind, ReducedTypes, &K::sum_square>);
  registry.add("ReduceSumSquare", make_reduce<SumSquareKind, ReducedTypes, &K::sum_square>);
  registry.add("ReduceLogSum", make_reduce<LogSumKind, ReducedTypes, &K::sum>);
  registry.add("ReduceLogSumExp", make_log_sum_exp);
}

}  // namespace headrace
