// Ops whose output is their first input's elements, read in another order.
#pragma once

#include "ops/shape/shape_ops.h"
#include "ops/shape/transpose_kernels.h"

namespace headrace {

// How one Request's input is read: its elements at offset + strides . index, over `dims`, whose
// product is the output's number of elements.
struct ReadOrder {
  Shape dims;
  Strides strides;
  int64_t offset = 0;
};

class StridedCopyOp : public Op {
 public:
  explicit StridedCopyOp(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, transpose_kernels)) {}
  void run(const OpRun& run) const final;
  virtual ReadOrder order(InputViews inputs, const Shape& output) const = 0;

 private:
  ReadOrder order_of(const OpRun& run, size_t request) const;
  void copy(const OpRun& run, size_t request, bool split, bool streams) const;
  void transpose(float* to, const float* from, const Nest& nest, int64_t begin, int64_t end,
                 bool streams) const;

  const TransposeKernels& kernels_;
};

}  // namespace headrace
