// Ops that move elements around and never look at them.
#pragma once

#include "core/strided.h"
#include "ops/node_inputs.h"

namespace headrace {

// Base of ops whose output is their first input's bytes under another shape.
class ViewOp : public Op {
 public:
  void run(const OpRun&) const final {}
  int alias() const final { return 0; }
};

void register_views(OpRegistry& registry);
void register_transpose(OpRegistry& registry);
void register_concat(OpRegistry& registry);
void register_slice(OpRegistry& registry);
void register_generate(OpRegistry& registry);
void register_pad(OpRegistry& registry);

}  // namespace headrace
