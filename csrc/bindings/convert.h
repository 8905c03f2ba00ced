// Tensors between Python and C++.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "core/memory.h"
#include "core/tensor.h"
#include "runtime/signature.h"

namespace headrace {

// What a tensor is called in errors: input 'x'. Put into words only where there is one.
struct TensorName {
  std::string_view role;
  std::string_view name;
};

// A read-only view of an array-like (numpy, __array__, DLPack), and what keeps it alive. Copies
// only where the memory is not C-contiguous and for strings. Made and destroyed with the GIL held.
class HeldTensor {
 public:
  HeldTensor() = default;
  // Throws Error(kDtypeMismatch | kShapeMismatch) for what Headrace does not have.
  HeldTensor(pybind11::handle object, const TensorName& where);

  const ConstTensorView& view() const { return view_; }

 private:
  ConstTensorView view_;
  pybind11::object owner_;
  std::vector<StringRef> strings_;
};

// The inputs of one Request in signature order, checked against the signature.
class HeldRequest {
 public:
  HeldRequest() = default;  // no inputs
  // Throws Error of the RequestError kinds.
  HeldRequest(const Signature& signature, const pybind11::dict& request);

  std::span<const ConstTensorView> inputs() const { return views_; }

 private:
  std::vector<HeldTensor> tensors_;
  std::vector<ConstTensorView> views_;
};

// A new numpy array with a copy of the tensor; strings become an object array of str.
pybind11::array to_numpy(const ConstTensorView& tensor);

// A numpy array that looks into the tensor's own memory, which `owner` keeps alive; strings are
// copied as above.
pybind11::array share_numpy(const ConstTensorView& tensor, pybind11::handle owner);
// The same for a tensor in a Block, which the array takes along. Not for strings.
pybind11::array keep_numpy(const ConstTensorView& tensor, Block block);

// {"name": array} for one Request's outputs; get(i) gives the array of output i.
template <class Get>
pybind11::dict to_result(const Signature& signature, Get get) {
  pybind11::dict result;
  for (size_t i = 0; i < signature.outputs().size(); ++i) {
    result[pybind11::str(signature.outputs()[i].name)] = get(i);
  }
  return result;
}

// A (name, dtype, dims) triple, dims being ints and symbol names.
TensorSpec to_spec(const std::string& name, const std::string& dtype,
                   const pybind11::sequence& dims);

}  // namespace headrace
