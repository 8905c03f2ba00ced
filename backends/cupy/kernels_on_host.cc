// Runs the kernels of kernels.cu on the host, for test_adapter.py: as a library of one function per
// kernel, whose arguments are pointers to the kernel's.
#include <limits>
#include <utility>

#include "cuda/cuda_on_host.h"

// Blocks run one after the other.
#define __shared__ static
#include "kernels.cu"

namespace {

template <class... Arguments, size_t... kIndex>
void launch(void (*kernel)(Arguments...), dim3 grid, unsigned block, void** arguments,
            std::index_sequence<kIndex...>) {
  headrace::on_host::run_grid(grid, {block}, 0,
                              [=] { kernel(*static_cast<Arguments*>(arguments[kIndex])...); });
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), dim3 grid, unsigned block, void** arguments) {
  launch(kernel, grid, block, arguments, std::index_sequence_for<Arguments...>());
}

}  // namespace

#define ON_HOST(kernel)                                                                        \
  extern "C" void kernel##_on_host(unsigned x, unsigned y, unsigned block, void** arguments) { \
    launch(kernel, {x, y}, block, arguments);                                                  \
  }

ON_HOST(epilogue)
ON_HOST(unary)
ON_HOST(layer_norm)
ON_HOST(embedding_norm)
ON_HOST(softmax)
ON_HOST(attention)
