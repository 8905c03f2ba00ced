// Gather. The shape rule checks every index, on the host, so that none leads out of its axis.
#include "core/strided.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"

namespace headrace::cuda {
namespace {

// Y is [outer, indices, inner], the data [outer, length, inner].
struct GatherTask {
  int64_t count;  // elements of Y
  int64_t indices, length, inner;
  int64_t from, at, to;  // first elements of data, indices and Y
};

template <class T, class I>
__global__ void gather_kernel(const GatherTask* tasks, const T* data, const I* indices, T* y) {
  const GatherTask& task = tasks[blockIdx.y];
  int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < task.count; i += step) {
    int64_t outer = i / (task.indices * task.inner);
    int64_t index = indices[task.at + i / task.inner % task.indices];
    if (index < 0) index += task.length;
    y[task.to + i] = data[task.from + (outer * task.length + index) * task.inner + i % task.inner];
  }
}

template <class T>
class GatherOp final : public CudaOp {
 public:
  explicit GatherOp(int64_t axis) : axis_(axis) {}

  bool on_host(size_t input) const override { return input == 1; }

  void run(CudaRun& run) const override {
    if (run.output(0).elements() == 0) return;
    auto tasks = run.table<GatherTask>(run.requests());
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      const Segments& data = run.input(0);
      const Segments& indices = run.input(1);
      const Shape& shape = data.shape(r);
      int axis = normalize_axis(axis_, shape.rank());
      tasks.rows[r] = {run.output(0).shape(r).elements(),
                       indices.shape(r).elements(),
                       shape[axis],
                       shape.elements(axis + 1, shape.rank()),
                       data.shared ? 0 : data.offsets[r],
                       indices.shared ? 0 : indices.offsets[r],
                       run.output(0).offsets[r]};
      longest = std::max(longest, tasks.rows[r].count);
    }
    run.send(tasks);
    LaunchShape shape = loop_shape(longest);
    if (run.input(1).dtype == DType::kI32) {
      launch_rows(run.stream(), shape, gather_kernel<T, int32_t>, tasks, run.in<T>(0),
                  run.in<int32_t>(1), run.out<T>(0));
    } else {
      launch_rows(run.stream(), shape, gather_kernel<T, int64_t>, tasks, run.in<T>(0),
                  run.in<int64_t>(1), run.out<T>(0));
    }
  }

 private:
  int64_t axis_;
};

std::unique_ptr<CudaOp> make_gather(const CudaNode& node) {
  int64_t axis = node.spec.int_or("axis", 0);
  switch (size_of(node.spec.input_dtypes[0])) {
    case 1:
      return std::make_unique<GatherOp<uint8_t>>(axis);
    case 2:
      return std::make_unique<GatherOp<uint16_t>>(axis);
    case 4:
      return std::make_unique<GatherOp<uint32_t>>(axis);
    case 8:
      return std::make_unique<GatherOp<uint64_t>>(axis);
    default:
      node.spec.unsupported("device cuda: strings");
  }
}

}  // namespace

void register_index_cuda(CudaRegistry& registry) {
  registry.add("Gather", make_gather);
}

}  // namespace headrace::cuda
