// Unique.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

// Three-way comparison of one element; NaNs are equal and come last.
using Compare = int (*)(const void* a, const void* b);

template <class T>
int compare(const void* a, const void* b) {
  using C = ComputeType<T>;
  C x = C(*static_cast<const T*>(a)), y = C(*static_cast<const T*>(b));
  if (x != x || y != y) return (x != x ? 1 : 0) - (y != y ? 1 : 0);
  return x < y ? -1 : x > y ? 1 : 0;
}

int compare_strings(const void* a, const void* b) {
  return static_cast<const StringRef*>(a)->view().compare(static_cast<const StringRef*>(b)->view());
}

// The groups of equal slices along one axis, in the order in which they are put out.
struct Groups {
  std::vector<int64_t> order;  // slices, equal ones together, each group by rising index
  std::vector<int64_t> begin;  // per group: where it starts in `order`
};

// Kept per thread: infer() must count the groups, and has no arena to do it in.
Groups& groups_of_thread() {
  static thread_local Groups groups;
  return groups;
}

class Unique : public Op {
 public:
  explicit Unique(const NodeSpec& spec)
      : flat_(!spec.has("axis")),
        axis_(spec.int_or("axis", 0)),
        sorted_(spec.int_or("sorted", 1) != 0) {
    require_inputs(spec, 1);
    visit_dtype(NumbersAndBool{}, spec.input_dtypes[0], [&]<class T>() { compare_ = compare<T>; });
    if (spec.input_dtypes[0] == DType::kString) compare_ = compare_strings;
    if (compare_ == nullptr) unsupported_dtype(spec, 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = flat_ ? 0 : normalize_axis(axis_, from.rank());
    group(inputs[0], axis);
    auto count = static_cast<int64_t>(groups_of_thread().begin.size());
    outputs[0] = flat_ ? Shape{count} : from;
    if (!flat_) outputs[0][axis] = count;
    for (size_t o = 1; o < outputs.size(); ++o) {
      outputs[o] = {o == 2 ? (flat_ ? from.elements() : from[axis]) : count};
    }
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      int axis = flat_ ? 0 : normalize_axis(axis_, in.shape.rank());
      group(in, axis);
      write(run, r, in, axis);
    });
  }

 private:
  struct Slices {
    int64_t outer, length, inner;
  };
  Slices slices(const Shape& shape, int axis) const {
    if (flat_) return {1, shape.elements(), 1};
    return {shape.elements(0, axis), shape[axis], shape.elements(axis + 1, shape.rank())};
  }

  int compare_slices(const ConstTensorView& in, const Slices& s, int64_t a, int64_t b) const {
    const auto* data = static_cast<const std::byte*>(in.data);
    int64_t size = size_of(in.dtype);
    for (int64_t o = 0; o < s.outer; ++o) {
      for (int64_t i = 0; i < s.inner; ++i) {
        int order = compare_(data + ((o * s.length + a) * s.inner + i) * size,
                             data + ((o * s.length + b) * s.inner + i) * size);
        if (order != 0) return order;
      }
    }
    return 0;
  }

  void group(const ConstTensorView& in, int axis) const {
    Slices s = slices(in.shape, axis);
    Groups& groups = groups_of_thread();
    groups.order.resize(static_cast<size_t>(s.length));
    groups.begin.clear();
    for (int64_t i = 0; i < s.length; ++i) groups.order[static_cast<size_t>(i)] = i;
    std::ranges::sort(groups.order, [&](int64_t a, int64_t b) {
      int order = compare_slices(in, s, a, b);
      return order != 0 ? order < 0 : a < b;
    });
    for (size_t i = 0; i < groups.order.size(); ++i) {
      bool starts = i == 0 || compare_slices(in, s, groups.order[i - 1], groups.order[i]) != 0;
      if (starts) groups.begin.push_back(static_cast<int64_t>(i));
    }
    if (sorted_) return;
    // In the order of their first slices; where a group ends is found again by comparing.
    std::ranges::sort(groups.begin, [&](int64_t a, int64_t b) {
      return groups.order[static_cast<size_t>(a)] < groups.order[static_cast<size_t>(b)];
    });
  }

  void write(const OpRun& run, size_t r, const ConstTensorView& in, int axis) const {
    Slices s = slices(in.shape, axis);
    const Groups& groups = groups_of_thread();
    auto count = static_cast<int64_t>(groups.begin.size());
    int64_t bytes = s.inner * size_of(in.dtype);
    for (int64_t g = 0; g < count; ++g) {
      auto at = static_cast<size_t>(groups.begin[static_cast<size_t>(g)]);
      int64_t first = groups.order[at];
      for (int64_t o = 0; run.has_output(0) && bytes > 0 && o < s.outer; ++o) {
        std::memcpy(static_cast<std::byte*>(run.output(0).view(r).data) + (o * count + g) * bytes,
                    static_cast<const std::byte*>(in.data) + (o * s.length + first) * bytes,
                    static_cast<size_t>(bytes));
      }
      int64_t members = 0;
      for (size_t i = at; i < groups.order.size(); ++i, ++members) {
        if (compare_slices(in, s, first, groups.order[i]) != 0) break;
        if (run.has_output(2)) run.output(2).view(r).as<int64_t>()[groups.order[i]] = g;
      }
      if (run.has_output(1)) run.output(1).view(r).as<int64_t>()[g] = first;
      if (run.has_output(3)) run.output(3).view(r).as<int64_t>()[g] = members;
    }
  }

  bool flat_;
  int64_t axis_;
  bool sorted_;
  Compare compare_ = nullptr;
};

std::unique_ptr<Op> make_unique_op(const NodeSpec& spec) {
  return std::make_unique<Unique>(spec);
}

}  // namespace

void register_unique(OpRegistry& registry) {
  registry.add("Unique", make_unique_op);
}

}  // namespace headrace
