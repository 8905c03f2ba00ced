// Ops that pick elements by index, or say where elements are.
#pragma once

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"

namespace headrace {

void register_gather(OpRegistry& registry);
void register_scatter(OpRegistry& registry);
void register_find(OpRegistry& registry);
void register_unique(OpRegistry& registry);
void register_sort(OpRegistry& registry);
void register_scan(OpRegistry& registry);
void register_sequence(OpRegistry& registry);
void register_loss(OpRegistry& registry);

}  // namespace headrace
