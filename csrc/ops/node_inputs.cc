#include "ops/node_inputs.h"

namespace headrace {

void require_inputs(const NodeSpec& spec, size_t count) {
  bool complete = spec.inputs() == count;
  for (size_t i = 0; i < count && complete; ++i) complete = spec.has_input(i);
  if (!complete) spec.invalid(str("got ", spec.inputs(), " inputs, expected ", count));
}

void unsupported_dtype(const NodeSpec& spec, size_t input) {
  spec.unsupported(
      str("no kernel for input ", input, " of dtype ", name_of(spec.input_dtypes[input])));
}

void require_sane(const Shape& shape) {
  constexpr int64_t kMost = int64_t{1} << 40;
  int64_t product = 1;
  for (int64_t dim : shape.dims()) {
    // Zeros do not excuse the others: a later op may drop them.
    int64_t counted = std::max<int64_t>(dim, 1);
    if (dim < 0 || counted > kMost / product) {
      fail(ErrorKind::kShapeMismatch, "got an output of shape ", to_string(shape),
           ", expected no negative dim and at most ", kMost, " elements");
    }
    product *= counted;
  }
}

IntList::IntList(const NodeSpec& spec, std::string_view attribute, size_t input) : input_(input) {
  if (spec.has(attribute)) {
    values_ = spec.ints(attribute);
    fixed_ = true;
    return;
  }
  if (!spec.has_input(input)) return;
  if (spec.input_dtypes[input] != DType::kI64) {
    spec.unsupported(str(attribute, " of dtype ", name_of(spec.input_dtypes[input])));
  }
  if (spec.is_constant(input)) {
    std::span<const int64_t> constant = spec.constants[input].span<int64_t>();
    values_.assign(constant.begin(), constant.end());
    fixed_ = true;
  }
}

int64_t int_at(const ConstTensorView& tensor, int64_t i) {
  return tensor.dtype == DType::kI32 ? tensor.as<int32_t>()[i] : tensor.as<int64_t>()[i];
}

void require_index_dtype(const NodeSpec& spec, size_t input) {
  DType dtype = spec.input_dtypes[input];
  if (dtype != DType::kI32 && dtype != DType::kI64) unsupported_dtype(spec, input);
}

int64_t normalize_index(int64_t index, int64_t length) {
  if (index < -length || index >= length) {
    fail(ErrorKind::kExecution, "got index ", index, ", expected one in [", -length, ", ",
         length - 1, "]");
  }
  return from_front(index, length);
}

void check_indices(const ConstTensorView& indices, int64_t length) {
  int64_t n = indices.elements();
  for (int64_t i = 0; i < n; ++i) normalize_index(int_at(indices, i), length);
}

}  // namespace headrace
