// Concat and Split.
#include <cstring>

#include "core/copy.h"
#include "ops/shape/shape_ops.h"

namespace headrace {
namespace {

// Copies `rows` runs of `bytes` between two tensors that step by their own number of bytes.
void copy_runs(std::byte* to, int64_t to_step, const std::byte* from, int64_t from_step,
               int64_t rows, int64_t bytes, bool streams) {
  if (bytes == 0) return;
  if (streams && streams_well(to, to_step, bytes)) {
    for (int64_t row = 0; row < rows; ++row) {
      stream_bytes(to + row * to_step, from + row * from_step, bytes);
    }
    return end_stream_bytes();
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_step, from + row * from_step, static_cast<size_t>(bytes));
  }
}

class Concat : public Op {
 public:
  explicit Concat(const NodeSpec& spec) : axis_(spec.int_or("axis", 1)) {
    for (size_t i = 0; i < spec.inputs(); ++i) {
      if (spec.input_dtypes[i] != spec.input_dtypes[0]) spec.invalid("inputs of several dtypes");
    }
    if (spec.inputs() == 0) spec.invalid("got no inputs, expected at least 1");
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Shape sum = inputs[0].shape;
    int axis = normalize_axis(axis_, sum.rank());
    for (size_t i = 1; i < inputs.size(); ++i) {
      const Shape& next = inputs[i].shape;
      bool fits = next.rank() == sum.rank();
      for (int a = 0; fits && a < sum.rank(); ++a) fits = a == axis || next[a] == sum[a];
      if (!fits) {
        fail(ErrorKind::kShapeMismatch, "got input ", i, " of shape ", to_string(next),
             ", expected ", to_string(inputs[0].shape), " except along axis ", axis);
      }
      sum[axis] += next[axis];
    }
    outputs[0] = sum;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView out = run.output(0).view(r);
      int64_t size = size_of(out.dtype);
      int axis = normalize_axis(axis_, out.shape.rank());
      int64_t rows = out.shape.elements(0, axis);
      int64_t step = out.shape.elements(axis, out.shape.rank()) * size;
      bool streams = run.output(0).elements() * size >= kStreamBytes;
      auto* to = static_cast<std::byte*>(out.data);
      for (size_t i = 0; i < run.inputs(); ++i) {
        TensorView in = run.input(i).view(r);
        int64_t bytes = in.shape.elements(axis, in.shape.rank()) * size;
        copy_runs(to, step, static_cast<const std::byte*>(in.data), bytes, rows, bytes, streams);
        to += bytes;
      }
    });
  }

 private:
  int64_t axis_;
};

class Split : public Op {
 public:
  explicit Split(const NodeSpec& spec)
      : axis_(spec.int_or("axis", 0)),
        sizes_(spec, "split", 1),
        outputs_(spec.output_dtypes.size()) {
    auto count = static_cast<size_t>(spec.int_or("num_outputs", static_cast<int64_t>(outputs_)));
    if (count != outputs_) {
      spec.invalid(str("got num_outputs ", count, " and ", outputs_, " outputs"));
    }
    // Until opset 18 an equal split must come out even; later the last output may be shorter.
    even_ = !spec.has("num_outputs");
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    int axis = normalize_axis(axis_, from.rank());
    int64_t length = from[axis];
    std::span<const int64_t> sizes = sizes_.get(inputs);
    bool given = sizes_.present(inputs);
    auto count = static_cast<int64_t>(outputs.size());
    if (given ? sizes.size() != outputs.size() : even_ && length % count != 0) {
      fail(ErrorKind::kShapeMismatch, "got ", given ? static_cast<int64_t>(sizes.size()) : length,
           given ? " sizes" : " elements", " to split into ", count, " outputs");
    }
    int64_t each = (length + count - 1) / count;
    int64_t rest = length;
    for (size_t o = 0; o < outputs.size(); ++o) {
      outputs[o] = from;
      outputs[o][axis] = given ? sizes[o] : std::min(each, rest);
      rest -= outputs[o][axis];
      if (outputs[o][axis] < 0) fail(ErrorKind::kShapeMismatch, "got a negative split size");
    }
    if (rest != 0) {
      fail(ErrorKind::kShapeMismatch, "got split sizes that sum to ", length - rest, ", expected ",
           length);
    }
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      InputViews none;
      int axis = normalize_axis(axis_, in.shape.rank());
      int64_t rows = in.shape.elements(0, axis);
      int64_t tail = in.shape.elements(axis + 1, in.shape.rank()) * size_of(in.dtype);
      int64_t step = in.shape[axis] * tail;
      const auto* from = static_cast<const std::byte*>(in.data);
      std::span<const int64_t> sizes = sizes_.get(none);
      ConstTensorView given;
      if (sizes.empty() && run.has_input(1)) {
        given = run.input(1).view(r);
        sizes = given.span<int64_t>();
      }
      int64_t each =
          (in.shape[axis] + static_cast<int64_t>(outputs_) - 1) / static_cast<int64_t>(outputs_);
      int64_t rest = in.shape[axis];
      for (size_t o = 0; o < outputs_; ++o) {
        int64_t length = sizes.empty() ? std::min(each, rest) : sizes[o];
        rest -= length;
        if (run.has_output(o)) {
          copy_runs(static_cast<std::byte*>(run.output(o).view(r).data), length * tail, from, step,
                    rows, length * tail,
                    run.input(0).elements() * size_of(in.dtype) >= kStreamBytes);
        }
        from += length * tail;
      }
    });
  }

 private:
  int64_t axis_;
  IntList sizes_;
  size_t outputs_;
  bool even_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_concat(OpRegistry& registry) {
  registry.add("Concat", make<Concat>);
  registry.add("Split", make<Split>);
}

}  // namespace headrace
