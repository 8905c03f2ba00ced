// RNN, GRU, LSTM.
#pragma once

#include "core/strided.h"
#include "ops/node_inputs.h"

namespace headrace {

// What a cell needs to take one step of one sequence in one direction. All float32.
struct CellWeights {
  const float* w;         // [gates * hidden, in]
  const float* r;         // [gates * hidden, hidden]
  const float* bias;      // [2 * gates * hidden], or null
  const float* peephole;  // [3 * hidden], or null
  int64_t in;
  int64_t hidden;
};

using Activation = float (*)(float);

struct Cell {
  int64_t gates;
  // Updates h and c (LSTM only) from x; `scratch` has room for (gates + 1) * hidden floats.
  void (*step)(const CellWeights& weights, const Activation* activations, bool reset_last,
               const float* x, float* h, float* c, float* scratch);
};

const Cell& rnn_cell();
const Cell& gru_cell();
const Cell& lstm_cell();

void register_recurrent(OpRegistry& registry);

}  // namespace headrace
