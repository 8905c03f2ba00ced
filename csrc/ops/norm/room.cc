// The norm room's registration and what its files share.
#include "ops/norm/room.h"
#include "ops/rooms.h"

namespace headrace {

void check_elements(const char* input, const Shape& shape, int64_t expected) {
  if (shape.elements() == expected) return;
  fail(ErrorKind::kShapeMismatch, input, ": got ", to_string(shape), ", expected ", expected,
       " elements");
}

void require_one_dtype(const NodeSpec& spec, size_t inputs) {
  for (size_t i = 1; i < inputs; ++i) {
    if (spec.has_input(i) && spec.input_dtypes[i] != spec.input_dtypes[0]) {
      spec.unsupported(str("input ", i, " is ", name_of(spec.input_dtypes[i]), " and input 0 is ",
                           name_of(spec.input_dtypes[0]), ", only equal dtypes are"));
    }
  }
}

void register_norm_ops(OpRegistry& registry) {
  registry.add("LayerNormalization", make_layer_norm);
  registry.add("RMSNormalization", make_layer_norm);
  registry.add("headrace.EmbeddingNorm", make_embedding_norm);
  registry.add("BatchNormalization", make_batch_norm);
  registry.add("InstanceNormalization", make_group_norm);
  registry.add("GroupNormalization", make_group_norm);
  registry.add("LpNormalization", make_lp_norm);
  registry.add("LRN", make_lrn);
}

}  // namespace headrace
