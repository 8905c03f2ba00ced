// What the norm room's files share.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/norm/norm.h"
#include "ops/op.h"

namespace headrace {

// Factories by file.
std::unique_ptr<Op> make_layer_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_embedding_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_batch_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_group_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_lp_norm(const NodeSpec& spec);
std::unique_ptr<Op> make_lrn(const NodeSpec& spec);

// Throws Error(kShapeMismatch) unless `shape` holds as many elements as expected.
void check_elements(const char* input, const Shape& shape, int64_t expected);

// Refuses the node unless its first `inputs` inputs all have the first one's dtype.
void require_one_dtype(const NodeSpec& spec, size_t inputs);

}  // namespace headrace
