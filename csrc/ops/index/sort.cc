// TopK.
#include <algorithm>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

// One line of the tensor along the axis.
struct Line {
  const void* in;
  void* values;
  int64_t* indices;
  int64_t length;
  int64_t step;
  int64_t k;
  int64_t* order;  // room for `length` indices
};

// Ties go to the lower index; a NaN counts as larger than any number, as numpy sorts it.
template <class T, bool kLargest>
void top_k(const Line& line) {
  using C = ComputeType<T>;
  const T* x = static_cast<const T*>(line.in);
  for (int64_t i = 0; i < line.length; ++i) line.order[i] = i;
  auto before = [&](int64_t i, int64_t j) {
    C a = C(x[i * line.step]), b = C(x[j * line.step]);
    bool nan_a = a != a, nan_b = b != b;
    if (nan_a != nan_b) return kLargest ? nan_a : nan_b;
    if (nan_a || a == b) return i < j;
    return kLargest ? a > b : a < b;
  };
  std::partial_sort(line.order, line.order + line.k, line.order + line.length, before);
  for (int64_t i = 0; i < line.k; ++i) {
    if (line.values != nullptr)
      static_cast<T*>(line.values)[i * line.step] = x[line.order[i] * line.step];
    if (line.indices != nullptr) line.indices[i * line.step] = line.order[i];
  }
}

class TopK : public Op {
 public:
  explicit TopK(const NodeSpec& spec) : axis_(spec.int_or("axis", -1)) {
    if (!spec.has("k")) k_ = IntList(spec, "", 1);
    bool largest = spec.int_or("largest", 1) != 0;
    bool known = visit_dtype(Numbers{}, spec.input_dtypes.at(0), [&]<class T>() {
      loop_ = largest ? top_k<T, true> : top_k<T, false>;
    });
    if (!known) unsupported_dtype(spec, 0);
    if (spec.has("k")) fixed_k_ = spec.int_or("k", 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = normalize_axis(axis_, from.rank());
    int64_t k = fixed_k_;
    if (k < 0) {
      std::span<const int64_t> given = k_.get(inputs);
      k = given.size() == 1 ? given[0] : -1;
    }
    if (k < 0 || k > from[axis]) {
      fail(ErrorKind::kShapeMismatch, "got k ", k, ", expected at most the ", from[axis],
           " elements of axis ", axis);
    }
    for (Shape& output : outputs) {
      output = from;
      output[axis] = k;
    }
  }

  void run(const OpRun& run) const override {
    const Segments& in = run.input(0);
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      longest = std::max(longest, in.shape(r)[normalize_axis(axis_, in.shape(r).rank())]);
    }
    if (longest == 0) return;
    auto* order = run.scratch_of<int64_t>(longest * run.threads());
    run.parallel_ranges(static_cast<int64_t>(run.requests()), 1,
                        [&](int64_t begin, int64_t end, int thread) {
                          for (int64_t r = begin; r < end; ++r) {
                            run_one(run, static_cast<size_t>(r), order + thread * longest);
                          }
                        });
  }

 private:
  void run_one(const OpRun& run, size_t r, int64_t* order) const {
    TensorView in = run.input(0).view(r);
    int axis = normalize_axis(axis_, in.shape.rank());
    const Segments& any = run.has_output(0) ? run.output(0) : run.output(1);
    int64_t size = size_of(in.dtype);
    int64_t inner = in.shape.elements(axis + 1, in.shape.rank());
    Line line{.in = nullptr,
              .values = nullptr,
              .indices = nullptr,
              .length = in.shape[axis],
              .step = inner,
              .k = any.shape(r)[axis],
              .order = order};
    for (int64_t outer = 0; outer < in.shape.elements(0, axis); ++outer) {
      for (int64_t i = 0; i < inner; ++i) {
        line.in = static_cast<const std::byte*>(in.data) + (outer * line.length * inner + i) * size;
        int64_t at = outer * line.k * inner + i;
        if (run.has_output(0)) {
          line.values = static_cast<std::byte*>(run.output(0).view(r).data) + at * size;
        }
        if (run.has_output(1)) line.indices = run.output(1).view(r).as<int64_t>() + at;
        loop_(line);
      }
    }
  }

  int64_t axis_;
  IntList k_;
  int64_t fixed_k_ = -1;
  void (*loop_)(const Line&) = nullptr;
};

std::unique_ptr<Op> make_top_k(const NodeSpec& spec) {
  return std::make_unique<TopK>(spec);
}

}  // namespace

void register_sort(OpRegistry& registry) {
  registry.add("TopK", make_top_k);
}

}  // namespace headrace
