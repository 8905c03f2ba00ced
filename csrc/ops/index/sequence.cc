// OneHot and ReverseSequence, TensorScatter.
#include <cmath>
#include <cstring>

#include "ops/index/index_ops.h"

namespace headrace {
namespace {

// Any numeric tensor's element as int64; floats are cut off.
using ReadInt = int64_t (*)(const void* data, int64_t i);

template <class T>
int64_t read_int(const void* data, int64_t i) {
  auto x = ComputeType<T>(static_cast<const T*>(data)[i]);
  if constexpr (std::is_floating_point_v<decltype(x)>) {
    constexpr decltype(x) kLimit = static_cast<decltype(x)>(0x1p62);
    if (!(std::abs(x) < kLimit)) return INT64_MIN;
  }
  return static_cast<int64_t>(x);
}

class OneHot : public Op {
 public:
  explicit OneHot(const NodeSpec& spec) : axis_(spec.int_or("axis", -1)) {
    require_inputs(spec, 3);
    for (size_t i = 0; i < 2; ++i) {
      bool known =
          visit_dtype(Numbers{}, spec.input_dtypes[i], [&]<class T>() { read_[i] = read_int<T>; });
      if (!known) unsupported_dtype(spec, i);
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& indices = inputs[0].shape;
    int axis = normalize_axis(axis_, indices.rank() + 1);
    bool fits = inputs[1].elements() == 1 && inputs[2].elements() == 2;
    int64_t depth = fits ? read_[1](inputs[1].data, 0) : 0;
    if (!fits || depth < 0) {
      fail(ErrorKind::kShapeMismatch, "got depth ", depth, " and ", inputs[2].elements(),
           " values, expected a depth of at least 0 and 2 values");
    }
    outputs[0] = {};
    for (int i = 0; i <= indices.rank(); ++i) {
      outputs[0].push_back(i == axis ? depth : indices[i < axis ? i : i - 1]);
    }
    require_sane(outputs[0]);
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView indices = run.input(0).view(r);
      TensorView values = run.input(2).view(r);
      TensorView out = run.output(0).view(r);
      int axis = normalize_axis(axis_, out.shape.rank());
      int64_t depth = out.shape[axis];
      int64_t inner = out.shape.elements(axis + 1, out.shape.rank());
      visit_size(size_of(out.dtype), [&]<class T>() {
        std::fill_n(out.as<T>(), out.elements(), values.as<T>()[0]);
        for (int64_t i = 0; i < indices.elements(); ++i) {
          int64_t hot = read_[0](indices.data, i);
          hot = hot < 0 ? hot + depth : hot;
          if (hot < 0 || hot >= depth) continue;  // all off, as ONNX has it
          out.as<T>()[(i / inner * depth + hot) * inner + i % inner] = values.as<T>()[1];
        }
      });
    });
  }

 private:
  int64_t axis_;
  ReadInt read_[2] = {};
};

class ReverseSequence : public Op {
 public:
  explicit ReverseSequence(const NodeSpec& spec)
      : time_axis_(static_cast<int>(spec.int_or("time_axis", 0))),
        batch_axis_(static_cast<int>(spec.int_or("batch_axis", 1))) {
    require_inputs(spec, 2);
    require_index_dtype(spec, 1);
    if (time_axis_ + batch_axis_ != 1 || time_axis_ * batch_axis_ != 0) {
      spec.invalid("time_axis and batch_axis must be 0 and 1 or 1 and 0");
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& from = inputs[0].shape;
    if (from.rank() < 2 || inputs[1].elements() != from[batch_axis_]) {
      fail(ErrorKind::kShapeMismatch, "got ", inputs[1].elements(), " lengths for ",
           to_string(from), ", expected one per sequence");
    }
    for (int64_t i = 0; i < inputs[1].elements(); ++i) {
      int64_t length = int_at(inputs[1], i);
      if (length < 0 || length > from[time_axis_]) {
        fail(ErrorKind::kExecution, "got length ", length, ", expected at most ", from[time_axis_]);
      }
    }
    outputs[0] = from;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView in = run.input(0).view(r);
      ConstTensorView lengths = run.input(1).view(r);
      int64_t bytes = in.shape.elements(2, in.shape.rank()) * size_of(in.dtype);
      if (bytes == 0) return;
      Strides strides = strides_of(in.shape);
      int64_t unit = in.shape.elements(2, in.shape.rank());
      for (int64_t b = 0; b < in.shape[batch_axis_]; ++b) {
        int64_t length = int_at(lengths, b);
        for (int64_t t = 0; t < in.shape[time_axis_]; ++t) {
          int64_t source = t < length ? length - 1 - t : t;
          auto at = [&](int64_t time) {
            return (b * strides[batch_axis_] + time * strides[time_axis_]) / unit * bytes;
          };
          std::memcpy(static_cast<std::byte*>(run.output(0).view(r).data) + at(t),
                      static_cast<const std::byte*>(in.data) + at(source),
                      static_cast<size_t>(bytes));
        }
      }
    });
  }

 private:
  int time_axis_;
  int batch_axis_;
};

// Writes new keys or values into a cache, from a position of each batch row on.
class TensorScatter : public Op {
 public:
  explicit TensorScatter(const NodeSpec& spec) : axis_(spec.int_or("axis", -2)) {
    std::string mode = spec.string_or("mode", "linear");
    circular_ = mode == "circular";
    if (!circular_ && mode != "linear") spec.unsupported(str("mode '", mode, "'"));
    if (spec.has_input(2)) require_index_dtype(spec, 2);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& cache = inputs[0].shape;
    const Shape& update = inputs[1].shape;
    int axis = normalize_axis(axis_, cache.rank());
    bool fits = update.rank() == cache.rank() && axis > 0;
    for (int i = 0; fits && i < cache.rank(); ++i) {
      fits = i == axis ? update[i] <= cache[i] : update[i] == cache[i];
    }
    bool has_starts = inputs.size() > 2 && inputs[2].present();
    if (!fits || (has_starts && inputs[2].elements() != cache[0])) {
      fail(ErrorKind::kShapeMismatch, "got an update of shape ", to_string(update), " for ",
           to_string(cache), ", expected one that fits along axis ", axis);
    }
    for (int64_t b = 0; has_starts && b < cache[0]; ++b) {
      int64_t start = int_at(inputs[2], b);
      if (start < 0 || (!circular_ && start + update[axis] > cache[axis])) {
        fail(ErrorKind::kExecution, "got start ", start, " for ", update[axis],
             " positions, expected them within ", cache[axis]);
      }
    }
    outputs[0] = cache;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView cache = run.input(0).view(r);
      TensorView update = run.input(1).view(r);
      TensorView out = run.output(0).view(r);
      if (out.elements() == 0) return;
      if (out.data != cache.data)
        std::memcpy(out.data, cache.data, static_cast<size_t>(out.bytes()));
      int axis = normalize_axis(axis_, cache.shape.rank());
      int64_t bytes = cache.shape.elements(axis + 1, cache.shape.rank()) * size_of(cache.dtype);
      int64_t per_batch = cache.shape.elements(1, axis);
      int64_t length = cache.shape[axis];
      int64_t count = update.shape[axis];
      for (int64_t row = 0; row < cache.shape[0] * per_batch; ++row) {
        int64_t start = run.has_input(2) ? int_at(run.input(2).view(r), row / per_batch) : 0;
        for (int64_t i = 0; i < count; ++i) {
          std::memcpy(
              static_cast<std::byte*>(out.data) + (row * length + (start + i) % length) * bytes,
              static_cast<const std::byte*>(update.data) + (row * count + i) * bytes,
              static_cast<size_t>(bytes));
        }
      }
    });
  }

  bool can_overwrite(size_t input) const override { return input == 0; }

 private:
  int64_t axis_;
  bool circular_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_sequence(OpRegistry& registry) {
  registry.add("OneHot", make<OneHot>);
  registry.add("ReverseSequence", make<ReverseSequence>);
  registry.add("TensorScatter", make<TensorScatter>);
}

}  // namespace headrace
