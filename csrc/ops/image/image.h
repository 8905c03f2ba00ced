// Ops that sample images: [N, C, D1, D2, ...].
#pragma once

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"

namespace headrace {

// Weights of Keys' cubic convolution for the four neighbours of a point that lies `ratio` after the
// second of them. Source: R. Keys, "Cubic convolution interpolation", 1981; a = -0.75 is usual.
template <class C>
void cubic_weights(C ratio, C a, C* weights) {
  C far = ratio + 1, near = ratio, next = 1 - ratio, last = 2 - ratio;
  weights[0] = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a;
  weights[1] = ((a + 2) * near - (a + 3)) * near * near + 1;
  weights[2] = ((a + 2) * next - (a + 3)) * next * next + 1;
  weights[3] = ((a * last - 5 * a) * last + 8 * a) * last - 4 * a;
}

void register_resize(OpRegistry& registry);
void register_sample(OpRegistry& registry);
void register_boxes(OpRegistry& registry);
void register_col2im(OpRegistry& registry);

}  // namespace headrace
