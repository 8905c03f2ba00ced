// Tensors between Python and C++.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "core/memory.h"
#include "core/tensor.h"
#include "runtime/signature.h"

namespace headrace {

// The dtype of a numpy array; kString for str, bytes and object arrays. Throws
// Error(kDtypeMismatch) naming `where` for one that Headrace does not have.
DType dtype_of(const pybind11::array& array, const std::string& where);

// A read-only view of an array-like (numpy, __array__, DLPack), and what keeps it alive. Copies
// only where the memory is not C-contiguous and for strings. Made and destroyed with the GIL held.
class HeldTensor {
 public:
  HeldTensor() = default;
  // `where` names the tensor in errors.
  HeldTensor(pybind11::handle object, const std::string& where);

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
