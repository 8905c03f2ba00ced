// Gather, GatherElements, GatherND. Indices are checked where shapes are inferred, so that run()
// may copy without looking.
#include <cstring>

#include "core/copy.h"
#include "ops/index/index_ops.h"

namespace headrace {
namespace {

class Gather : public Op {
 public:
  explicit Gather(const NodeSpec& spec) : axis_(spec.int_or("axis", 0)) {
    require_inputs(spec, 2);
    require_index_dtype(spec, 1);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& data = inputs[0].shape;
    int axis = normalize_axis(axis_, data.rank());
    check_indices(inputs[1], data[axis]);
    Shape out;
    for (int i = 0; i < axis; ++i) out.push_back(data[i]);
    for (int64_t dim : inputs[1].shape.dims()) out.push_back(dim);
    for (int i = axis + 1; i < data.rank(); ++i) out.push_back(data[i]);
    outputs[0] = out;
  }

  void run(const OpRun& run) const override {
    const Segments& data = run.input(0);
    if (data.shared && normalize_axis(axis_, data.shape(0).rank()) == 0 && !run.input(1).shared) {
      return look_up(run);
    }
    run.parallel_requests([&](size_t r) {
      TensorView from = data.view(r);
      ConstTensorView indices = run.input(1).view(r);
      int axis = normalize_axis(axis_, from.shape.rank());
      int64_t outer = from.shape.elements(0, axis);
      int64_t bytes = from.shape.elements(axis + 1, from.shape.rank()) * size_of(from.dtype);
      int64_t length = from.shape[axis];
      int64_t count = indices.elements();
      auto* to = static_cast<std::byte*>(run.output(0).view(r).data);
      for (int64_t row = 0; row < outer; ++row) {
        const auto* base = static_cast<const std::byte*>(from.data) + row * length * bytes;
        copy_rows(to + row * count * bytes, base, indices, 0, count, length, bytes, false);
      }
    });
  }

 private:
  // An embedding table: the indices of all Requests are one list.
  static void look_up(const OpRun& run) {
    const Segments& table = run.input(0);
    const Shape& shape = table.shape(0);
    int64_t bytes = shape.elements(1, shape.rank()) * size_of(table.dtype);
    const Segments& in = run.input(1);
    ConstTensorView indices{in.dtype, {in.elements()}, in.data};
    constexpr int64_t kMinBytes = 65536;  // below, another thread costs more than it saves
    int64_t min_rows = std::max<int64_t>(1, kMinBytes / std::max<int64_t>(1, bytes));
    bool streams = in.elements() * bytes >= kStreamBytes;
    run.parallel_ranges(in.elements(), min_rows, [&](int64_t begin, int64_t end, int) {
      copy_rows(run.output(0).data + begin * bytes, table.data, indices, begin, end, shape[0],
                bytes, streams);
    });
  }

  static void copy_rows(std::byte* to, const std::byte* from, const ConstTensorView& indices,
                        int64_t begin, int64_t end, int64_t length, int64_t bytes, bool streams) {
    if (bytes == 0) return;
    streams = streams && streams_well(to, bytes, bytes);
    // Which row comes next no prefetcher can guess.
    constexpr int64_t kAhead = 4;
    for (int64_t i = begin; i < end; ++i, to += bytes) {
      if (i + kAhead < end) {
        const std::byte* next = from + from_front(int_at(indices, i + kAhead), length) * bytes;
        for (int64_t line = 0; line < bytes && line < kPrefetchBytes; line += 64) {
          __builtin_prefetch(next + line);
        }
      }
      const std::byte* row = from + from_front(int_at(indices, i), length) * bytes;
      if (streams) {
        stream_bytes(to, row, bytes);
      } else {
        std::memcpy(to, row, static_cast<size_t>(bytes));
      }
    }
    if (streams) end_stream_bytes();
  }

  // Beyond these bytes of a row the hardware has seen where it goes.
  static constexpr int64_t kPrefetchBytes = 2048;

  int64_t axis_;
};

class GatherElements : public Op {
 public:
  explicit GatherElements(const NodeSpec& spec) : axis_(spec.int_or("axis", 0)) {
    require_inputs(spec, 2);
    require_index_dtype(spec, 1);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& data = inputs[0].shape;
    const Shape& picked = inputs[1].shape;
    int axis = normalize_axis(axis_, data.rank());
    bool fits = picked.rank() == data.rank();
    for (int i = 0; fits && i < data.rank(); ++i) fits = i == axis || picked[i] <= data[i];
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got indices of shape ", to_string(picked),
           ", expected at most ", to_string(data), " except along axis ", axis);
    }
    check_indices(inputs[1], data[axis]);
    outputs[0] = picked;
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView data = run.input(0).view(r);
      ConstTensorView indices = run.input(1).view(r);
      TensorView out = run.output(0).view(r);
      int axis = normalize_axis(axis_, data.shape.rank());
      Strides strides = strides_of(data.shape);
      int64_t step = strides[axis];
      strides[axis] = 0;
      Nest nest(out.shape, {&strides, 1});
      visit_size(size_of(out.dtype), [&]<class T>() {
        T* to = out.as<T>();
        int64_t i = 0;
        nest.walk(0, nest.outer(), [&](const int64_t* offsets) {
          for (int64_t j = 0; j < nest.inner(); ++j, ++i) {
            int64_t at = from_front(int_at(indices, i), data.shape[axis]);
            to[i] = data.as<T>()[offsets[0] + j * nest.inner_stride(0) + at * step];
          }
        });
      });
    });
  }

 private:
  int64_t axis_;
};

class GatherNd : public Op {
 public:
  explicit GatherNd(const NodeSpec& spec)
      : batch_dims_(static_cast<int>(spec.int_or("batch_dims", 0))) {
    require_inputs(spec, 2);
    require_index_dtype(spec, 1);
    if (batch_dims_ < 0 || batch_dims_ > kMaxRank) spec.invalid("batch_dims out of range");
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& data = inputs[0].shape;
    const Shape& indices = inputs[1].shape;
    int b = batch_dims_;
    bool fits = indices.rank() > b && data.rank() >= b;
    int depth = fits ? static_cast<int>(std::min<int64_t>(indices[indices.rank() - 1], 99)) : 0;
    fits = fits && depth <= data.rank() - b;
    for (int i = 0; fits && i < b; ++i) fits = indices[i] == data[i];
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got data of shape ", to_string(data), " and indices of ",
           to_string(indices), " with ", b, " batch dims, expected indices that fit the data");
    }
    int64_t tuples = depth == 0 ? 0 : inputs[1].elements() / depth;
    for (int64_t t = 0; t < tuples; ++t) {
      for (int d = 0; d < depth; ++d)
        normalize_index(int_at(inputs[1], t * depth + d), data[b + d]);
    }
    outputs[0] = Shape(indices.dims().first(static_cast<size_t>(indices.rank() - 1)));
    for (int i = b + depth; i < data.rank(); ++i) outputs[0].push_back(data[i]);
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      TensorView data = run.input(0).view(r);
      ConstTensorView indices = run.input(1).view(r);
      const Shape& shape = data.shape;
      int rank = indices.shape.rank();
      int b = batch_dims_;
      auto depth = static_cast<int>(indices.shape[rank - 1]);
      int64_t batches = shape.elements(0, b);
      int64_t tuples = indices.shape.elements(b, rank - 1);
      int64_t bytes = shape.elements(b + depth, shape.rank()) * size_of(data.dtype);
      int64_t batch_bytes = shape.elements(b, shape.rank()) * size_of(data.dtype);
      auto* to = static_cast<std::byte*>(run.output(0).view(r).data);
      const auto* base = static_cast<const std::byte*>(data.data);
      if (bytes == 0) return;
      int64_t next = 0;
      for (int64_t batch = 0; batch < batches; ++batch, base += batch_bytes) {
        for (int64_t t = 0; t < tuples; ++t, to += bytes) {
          int64_t at = 0;
          for (int d = 0; d < depth; ++d, ++next) {
            at = at * shape[b + d] + from_front(int_at(indices, next), shape[b + d]);
          }
          std::memcpy(to, base + at * bytes, static_cast<size_t>(bytes));
        }
      }
    });
  }

 private:
  int batch_dims_;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_gather(OpRegistry& registry) {
  registry.add("Gather", make<Gather>);
  registry.add("GatherElements", make<GatherElements>);
  registry.add("GatherND", make<GatherNd>);
}

}  // namespace headrace
