// Every room's ops, in one place and in no static initialiser.
#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {

const OpRegistry& OpRegistry::global() {
  static const OpRegistry registry = [] {
    OpRegistry all;
    register_activation_ops(all);
    register_attention_ops(all);
    register_elementwise_ops(all);
    register_conv_ops(all);
    register_linear_ops(all);
    register_image_ops(all);
    register_quantize_ops(all);
    register_recurrent_ops(all);
    register_signal_ops(all);
    register_index_ops(all);
    register_ml_ops(all);
    register_norm_ops(all);
    register_reduce_ops(all);
    register_shape_ops(all);
    register_softmax_ops(all);
    register_tree_ops(all);
    return all;
  }();
  return registry;
}

}  // namespace headrace
