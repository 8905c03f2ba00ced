// The one function through which each room under ops/ registers its ops, named after its folder.
#pragma once

namespace headrace {

class OpRegistry;

void register_activation_ops(OpRegistry& registry);
void register_attention_ops(OpRegistry& registry);
void register_elementwise_ops(OpRegistry& registry);
void register_conv_ops(OpRegistry& registry);
void register_linear_ops(OpRegistry& registry);
void register_image_ops(OpRegistry& registry);
void register_quantize_ops(OpRegistry& registry);
void register_recurrent_ops(OpRegistry& registry);
void register_signal_ops(OpRegistry& registry);
void register_index_ops(OpRegistry& registry);
void register_ml_ops(OpRegistry& registry);
void register_norm_ops(OpRegistry& registry);
void register_reduce_ops(OpRegistry& registry);
void register_shape_ops(OpRegistry& registry);
void register_softmax_ops(OpRegistry& registry);
void register_trees_ops(OpRegistry& registry);

}  // namespace headrace
