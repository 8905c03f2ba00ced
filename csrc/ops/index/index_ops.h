// Ops that pick elements by index, or say where elements are.
#pragma once

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"

namespace headrace {

// Throws Error(kExecution) for an index outside [-length, length); else counts it from the front.
inline int64_t normalize_index(int64_t index, int64_t length) {
  if (index < -length || index >= length) {
    fail(ErrorKind::kExecution, "got index ", index, ", expected one in [", -length, ", ",
         length - 1, "]");
  }
  return index < 0 ? index + length : index;
}

// Refuses the node unless that input has int32 or int64 elements.
void require_index_dtype(const NodeSpec& spec, size_t input);

void register_gather(OpRegistry& registry);
void register_scatter(OpRegistry& registry);
void register_find(OpRegistry& registry);
void register_unique(OpRegistry& registry);
void register_sort(OpRegistry& registry);
void register_scan(OpRegistry& registry);
void register_sequence(OpRegistry& registry);
void register_loss(OpRegistry& registry);

}  // namespace headrace
