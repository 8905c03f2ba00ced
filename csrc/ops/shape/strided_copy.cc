#include "ops/shape/strided_copy.h"

#include <cstring>

#include "core/copy.h"

namespace headrace {
namespace {

constexpr int64_t kMinElements = 16384;  // below, another thread costs more than it saves
constexpr size_t kMaxInputs = 8;         // Slice has five, the most

const std::byte* source_of(const OpRun& run, const ReadOrder& order, size_t request) {
  const Segments& in = run.input(0);
  return static_cast<const std::byte*>(in.view(request).data) + order.offset * size_of(in.dtype);
}

// The elements in the order in which they lie in the input: reads that jump cost more than writes
// that do. tensors[0] is the input, tensors[1] the output.
struct InputOrder {
  Shape dims;
  Strides tensors[2];
};

// False where that is no other order, or where the runs are no whole cache lines, which writing in
// another order would write twice.
bool input_order(const ReadOrder& read, int64_t size, InputOrder* order) {
  Strides dense = strides_of(read.dims);
  int axes[kMaxRank];
  int count = 0;
  bool moves = false;
  for (int axis = 0; axis < read.dims.rank(); ++axis) {
    if (read.dims[axis] == 1) continue;
    if (read.strides[axis] <= 0) return false;
    int at = count++;
    for (; at > 0 && read.strides[axes[at - 1]] < read.strides[axis]; --at) axes[at] = axes[at - 1];
    moves = moves || at != count - 1;
    axes[at] = axis;
  }
  if (!moves) return false;
  int last = axes[count - 1];
  constexpr int64_t kLine = 64;
  bool lines = read.dims[last] * size % kLine == 0;
  if (!lines || read.strides[last] != 1 || dense[last] != 1) return false;
  for (int i = 0; i < count; ++i) {
    order->tensors[0][i] = read.strides[axes[i]];
    order->tensors[1][i] = dense[axes[i]];
    order->dims.push_back(read.dims[axes[i]]);
  }
  return true;
}

void copy_in_input_order(std::byte* to, const std::byte* from, const Nest& nest, int64_t begin,
                         int64_t end, int64_t size, bool streams) {
  int64_t bytes = nest.inner() * size;
  nest.walk(begin, end, [&](const int64_t* offsets) {
    std::byte* out = to + offsets[1] * size;
    const std::byte* in = from + offsets[0] * size;
    if (streams) {
      stream_bytes(out, in, bytes);
    } else {
      std::memcpy(out, in, static_cast<size_t>(bytes));
    }
  });
  if (streams) end_stream_bytes();
}

}  // namespace

ReadOrder StridedCopyOp::order_of(const OpRun& run, size_t request) const {
  ConstTensorView inputs[kMaxInputs];
  size_t count = std::min(run.inputs(), kMaxInputs);
  for (size_t i = 0; i < count; ++i) {
    if (run.has_input(i)) inputs[i] = run.input(i).view(request);
  }
  return order({inputs, count}, run.output(0).shape(request));
}

// A matrix whose rows are the input's columns, in the outer iterations [begin, end) of `nest`.
void StridedCopyOp::transpose(float* to, const float* from, const Nest& nest, int64_t begin,
                              int64_t end, bool streams) const {
  while (begin < end) {
    int64_t rows = std::min(nest.rows() - begin % nest.rows(), end - begin);
    nest.walk(begin, begin + 1, [&](const int64_t* offsets) {
      kernels_.matrix(from + offsets[0], nest.inner_stride(0), to + begin * nest.inner(), rows,
                      nest.inner(), streams);
    });
    begin += rows;
  }
}

// One Request; on this thread alone unless `split`.
void StridedCopyOp::copy(const OpRun& run, size_t request, bool split, bool streams) const {
  int64_t size = size_of(run.output(0).dtype);
  ReadOrder read = order_of(run, request);
  auto* to = static_cast<std::byte*>(run.output(0).view(request).data);
  const std::byte* from = source_of(run, read, request);
  auto spread = [&](const Nest& nest, auto range) {
    int64_t min_outer = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, nest.inner()));
    auto part = [&](int64_t begin, int64_t end, int) { range(nest, begin, end); };
    if (split) return run.parallel_ranges(nest.outer(), min_outer, part);
    part(0, nest.outer(), 0);
  };
  InputOrder order;
  if (input_order(read, size, &order)) {
    return spread(Nest(order.dims, order.tensors),
                  [&](const Nest& nest, int64_t begin, int64_t end) {
                    copy_in_input_order(to, from, nest, begin, end, size, streams);
                  });
  }
  spread(Nest(read.dims, {&read.strides, 1}), [&](const Nest& nest, int64_t begin, int64_t end) {
    bool transposes = nest.rows() > 1 && nest.row_stride(0) == 1 && nest.inner_stride(0) > 1;
    if (transposes && size == sizeof(float)) {
      return transpose(reinterpret_cast<float*>(to), reinterpret_cast<const float*>(from), nest,
                       begin, end, streams);
    }
    int64_t bytes = nest.inner() * size;
    std::byte* out = to + begin * bytes;
    if (!streams || nest.inner_stride(0) != 1 || !streams_well(out, bytes, bytes)) {
      return gather_strided(to, from, nest, begin, end, size);
    }
    nest.walk(begin, end, [&](const int64_t* offsets) {
      stream_bytes(out, from + offsets[0] * size, bytes);
      out += bytes;
    });
    end_stream_bytes();
  });
}

void StridedCopyOp::run(const OpRun& run) const {
  const Segments& out = run.output(0);
  bool streams = out.elements() * size_of(out.dtype) >= kStreamBytes;
  auto requests = static_cast<int64_t>(run.requests());
  if (requests < run.threads()) {
    for (size_t r = 0; r < run.requests(); ++r) copy(run, r, true, streams);
    return;
  }
  int64_t each = std::max<int64_t>(1, out.elements() / requests);
  run.parallel_ranges(requests, std::max<int64_t>(1, kMinElements / each),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t r = begin; r < end; ++r) {
                          copy(run, static_cast<size_t>(r), false, streams);
                        }
                      });
}

}  // namespace headrace
