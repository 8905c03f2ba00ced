// ArgMax and ArgMin.
#include "core/strided.h"
#include "core/visit.h"
#include "ops/reduce/reduce.h"

namespace headrace {
namespace {

// A tensor seen as [outer, length, inner] around one axis.
using ArgLoop = void (*)(const void* in, int64_t* out, int64_t outer, int64_t length, int64_t inner,
                         bool last);

// A NaN counts as more extreme than any number, as in numpy.
template <class T, bool kMax>
void arg_loop(const void* in, int64_t* out, int64_t outer, int64_t length, int64_t inner,
              bool last) {
  using C = ComputeType<T>;
  const T* x = static_cast<const T*>(in);
  for (int64_t o = 0; o < outer; ++o, x += length * inner) {
    for (int64_t i = 0; i < inner; ++i) {
      int64_t best = 0;
      C extreme = C(x[i]);
      for (int64_t n = 1; n < length; ++n) {
        C next = C(x[n * inner + i]);
        bool tie = next == extreme || (next != next && extreme != extreme);
        bool beats =
            (kMax ? next > extreme : next < extreme) || (next != next && extreme == extreme);
        if (beats || (tie && last)) {
          best = n;
          extreme = next;
        }
      }
      *out++ = best;
    }
  }
}

class ArgOp : public Op {
 public:
  ArgOp(const NodeSpec& spec, ArgLoop loop)
      : axis_(spec.int_or("axis", 0)),
        keep_dims_(spec.int_or("keepdims", 1) != 0),
        last_(spec.int_or("select_last_index", 0) != 0),
        loop_(loop) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = normalize_axis(axis_, from.rank());
    if (from[axis] == 0 && from.elements(0, axis) * from.elements(axis + 1, from.rank()) > 0) {
      fail(ErrorKind::kShapeMismatch, "got ", to_string(from), ", expected elements along axis ",
           axis);
    }
    outputs[0] = {};
    for (int i = 0; i < from.rank(); ++i) {
      if (i != axis || keep_dims_) outputs[0].push_back(i == axis ? 1 : from[i]);
    }
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      if (in.elements() == 0) return;
      int axis = normalize_axis(axis_, in.shape.rank());
      loop_(in.data, run.output(0).view(r).as<int64_t>(), in.shape.elements(0, axis),
            in.shape[axis], in.shape.elements(axis + 1, in.shape.rank()), last_);
    });
  }

 private:
  int64_t axis_;
  bool keep_dims_;
  bool last_;
  ArgLoop loop_;
};

template <bool kMax>
std::unique_ptr<Op> make_arg(const NodeSpec& spec) {
  require_inputs(spec, 1);
  ArgLoop loop = nullptr;
  visit_dtype(Numbers{}, spec.input_dtypes[0], [&]<class T>() { loop = arg_loop<T, kMax>; });
  if (loop == nullptr) unsupported_dtype(spec, 0);
  return std::make_unique<ArgOp>(spec, loop);
}

}  // namespace

void register_arg(OpRegistry& registry) {
  registry.add("ArgMax", make_arg<true>);
  registry.add("ArgMin", make_arg<false>);
}

}  // namespace headrace
