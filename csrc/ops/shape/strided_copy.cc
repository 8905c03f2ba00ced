#include "ops/shape/strided_copy.h"

namespace headrace {
namespace {

constexpr int64_t kMinElements = 16384;  // below, another thread costs more than it saves
constexpr size_t kMaxInputs = 8;         // Slice has five, the most

const std::byte* source_of(const OpRun& run, const ReadOrder& order, size_t request) {
  const Segments& in = run.input(0);
  return static_cast<const std::byte*>(in.view(request).data) + order.offset * size_of(in.dtype);
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

void StridedCopyOp::run(const OpRun& run) const {
  const Segments& out = run.output(0);
  int64_t size = size_of(out.dtype);
  auto requests = static_cast<int64_t>(run.requests());
  if (requests >= run.threads()) {
    int64_t each = std::max<int64_t>(1, out.elements() / requests);
    run.parallel_ranges(requests, std::max<int64_t>(1, kMinElements / each),
                        [&](int64_t begin, int64_t end, int) {
                          for (int64_t i = begin; i < end; ++i) {
                            auto r = static_cast<size_t>(i);
                            ReadOrder read = order_of(run, r);
                            gather_strided(out.view(r).data, source_of(run, read, r), read.dims,
                                           read.strides, size);
                          }
                        });
    return;
  }
  for (size_t r = 0; r < run.requests(); ++r) {
    ReadOrder read = order_of(run, r);
    Nest nest(read.dims, {&read.strides, 1});
    int64_t min_outer = std::max<int64_t>(1, kMinElements / std::max<int64_t>(1, nest.inner()));
    auto* to = static_cast<std::byte*>(out.view(r).data);
    const std::byte* from = source_of(run, read, r);
    run.parallel_ranges(nest.outer(), min_outer, [&](int64_t begin, int64_t end, int) {
      gather_strided(to, from, nest, begin, end, size);
    });
  }
}

}  // namespace headrace
