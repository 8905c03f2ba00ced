// Spectra and windows.
#pragma once

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"

namespace headrace {

void register_dft(OpRegistry& registry);
void register_windows(OpRegistry& registry);

}  // namespace headrace
