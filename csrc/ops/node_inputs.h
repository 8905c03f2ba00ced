// What factories and ops of several rooms do with a node's inputs.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "ops/op.h"

namespace headrace {

// Throws Error(kInvalidModel) unless the node has exactly that many inputs, all present.
void require_inputs(const NodeSpec& spec, size_t count);
// Refuses the node for the dtype of one of its inputs.
[[noreturn]] void unsupported_dtype(const NodeSpec& spec, size_t input);

// Throws Error(kShapeMismatch) for a shape that came out of a Request's data and is negative or too
// large for any memory, before a product of its dims can overflow.
void require_sane(const Shape& shape);

// The node's list of integers that was an attribute in old opsets and is an input in new ones.
// Reads the constant, the Request's tensor or the attribute, whichever there is.
class IntList {
 public:
  IntList() = default;
  // `input` is where new opsets have it.
  IntList(const NodeSpec& spec, std::string_view attribute, size_t input);

  bool present(InputViews inputs) const { return fixed_ || from_input(inputs); }
  // Empty if absent. Valid while the op and the Request are.
  std::span<const int64_t> get(InputViews inputs) const {
    return from_input(inputs) ? inputs[input_].span<int64_t>() : std::span<const int64_t>(values_);
  }

 private:
  bool from_input(InputViews inputs) const {
    return !fixed_ && input_ < inputs.size() && inputs[input_].present();
  }
  std::vector<int64_t> values_;
  bool fixed_ = false;
  size_t input_ = 0;
};

// An int32 or int64 tensor's element, as int64.
int64_t int_at(const ConstTensorView& tensor, int64_t i);

// Refuses the node unless that input has int32 or int64 elements.
void require_index_dtype(const NodeSpec& spec, size_t input);
// Throws Error(kExecution) for an index outside [-length, length); else counts it from the front.
int64_t normalize_index(int64_t index, int64_t length);
// The same for every element of a tensor, which is then known to hold indices.
void check_indices(const ConstTensorView& indices, int64_t length);
// Of an index that has been checked.
inline int64_t from_front(int64_t index, int64_t length) {
  return index < 0 ? index + length : index;
}

}  // namespace headrace
