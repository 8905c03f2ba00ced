// Ops whose output is their first input's elements, read in another order.
#pragma once

#include "ops/shape/shape_ops.h"

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
  void run(const OpRun& run) const final;
  virtual ReadOrder order(InputViews inputs, const Shape& output) const = 0;

 private:
  ReadOrder order_of(const OpRun& run, size_t request) const;
};

}  // namespace headrace
