// One step of each recurrent cell, after the equations of the ONNX operator specification.
#include <algorithm>

#include "ops/recurrent/recurrent.h"

namespace headrace {
namespace {

// Eight chains side by side, joined in one fixed order.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int kChains = 8;
  float chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int j = 0; j < kChains; ++j) chains[j] += a[i + j] * b[i + j];
  }
  float total = 0;
  for (float chain : chains) total += chain;
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// x . w + bias for row `row` of the weights, and likewise for the state.
float from_input(const CellWeights& weights, const float* x, int64_t row) {
  float sum = dot(x, weights.w + row * weights.in, weights.in);
  return weights.bias == nullptr ? sum : sum + weights.bias[row];
}
float from_state(const CellWeights& weights, const float* h, int64_t row, int64_t gates) {
  float sum = dot(h, weights.r + row * weights.hidden, weights.hidden);
  return weights.bias == nullptr ? sum : sum + weights.bias[gates * weights.hidden + row];
}

void rnn_step(const CellWeights& weights, const Activation* activations, bool, const float* x,
              float* h, float*, float* scratch) {
  for (int64_t j = 0; j < weights.hidden; ++j) {
    scratch[j] = activations[0](from_input(weights, x, j) + from_state(weights, h, j, 1));
  }
  std::copy_n(scratch, weights.hidden, h);
}

// Gates z, r, h. `reset_last` applies the reset gate after the state's product, not before it.
void gru_step(const CellWeights& weights, const Activation* activations, bool reset_last,
              const float* x, float* h, float*, float* scratch) {
  int64_t n = weights.hidden;
  float* update = scratch;
  float* reset = scratch + n;
  float* next = scratch + 2 * n;
  float* gated = scratch + 3 * n;
  for (int64_t j = 0; j < n; ++j) {
    update[j] = activations[0](from_input(weights, x, j) + from_state(weights, h, j, 3));
    reset[j] = activations[0](from_input(weights, x, n + j) + from_state(weights, h, n + j, 3));
  }
  for (int64_t j = 0; j < n; ++j) gated[j] = reset[j] * h[j];
  for (int64_t j = 0; j < n; ++j) {
    float state = reset_last ? reset[j] * from_state(weights, h, 2 * n + j, 3)
                             : from_state(weights, gated, 2 * n + j, 3);
    next[j] = activations[1](from_input(weights, x, 2 * n + j) + state);
  }
  for (int64_t j = 0; j < n; ++j) h[j] = (1 - update[j]) * next[j] + update[j] * h[j];
}

// Gates i, o, f, c; peepholes i, o, f.
void lstm_step(const CellWeights& weights, const Activation* activations, bool, const float* x,
               float* h, float* c, float* scratch) {
  int64_t n = weights.hidden;
  for (int64_t j = 0; j < 4 * n; ++j) {
    scratch[j] = from_input(weights, x, j) + from_state(weights, h, j, 4);
  }
  const float* p = weights.peephole;
  for (int64_t j = 0; j < n; ++j) {
    float input = activations[0](scratch[j] + (p == nullptr ? 0 : p[j] * c[j]));
    float forget = activations[0](scratch[2 * n + j] + (p == nullptr ? 0 : p[2 * n + j] * c[j]));
    c[j] = forget * c[j] + input * activations[1](scratch[3 * n + j]);
    float output = activations[0](scratch[n + j] + (p == nullptr ? 0 : p[n + j] * c[j]));
    h[j] = output * activations[2](c[j]);
  }
}

}  // namespace

const Cell& rnn_cell() {
  static constexpr Cell cell{1, rnn_step};
  return cell;
}
const Cell& gru_cell() {
  static constexpr Cell cell{3, gru_step};
  return cell;
}
const Cell& lstm_cell() {
  static constexpr Cell cell{4, lstm_step};
  return cell;
}

}  // namespace headrace
