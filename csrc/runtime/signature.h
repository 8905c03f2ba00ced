// A Model's named inputs and outputs, and the check that a Request fits them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace headrace {

// One axis: a fixed length, or a named length that a Request binds.
struct Dim {
  int64_t length = -1;  // -1 if symbolic
  std::string symbol;   // empty if fixed
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::kNone;
  std::vector<Dim> dims;
};

std::string to_string(const TensorSpec& spec);

class Signature {
 public:
  Signature() = default;
  Signature(std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs);

  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }
  // Index of the input of that name, or -1.
  int input_index(std::string_view name) const;

  // Throws Error(kMissingInput | kDtypeMismatch | kShapeMismatch) unless the tensors, given in
  // signature order (absent ones with dtype kNone), fit: a symbol that stands in several places
  // must have one length.
  void check(std::span<const ConstTensorView> inputs) const;

  // The size of a Request for the cost model: the largest product of symbolic dims over its inputs
  // (rows of a table, tokens of a batch of texts), at least 1.
  int64_t work(std::span<const ConstTensorView> inputs) const;

 private:
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  int symbols_ = 0;                           // how many distinct ones
  std::vector<std::vector<int>> symbol_ids_;  // per input, per axis; -1 if fixed
};

}  // namespace headrace
