// What the server's request path asks about texts and arrays.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "core/error.h"
#include "core/finite.h"
#include "core/json_keys.h"

namespace py = pybind11;

namespace headrace {
namespace {

bool is_finite(py::array array) {
  if (!(array.flags() & py::array::c_style)) array = py::array::ensure(array, py::array::c_style);
  auto count = static_cast<size_t>(array.size());
  const void* data = array.data();
  switch (array.itemsize()) {
    case 8:
      return all_finite(data, count, kExponentF64);
    case 4:
      return all_finite(data, count, kExponentF32);
    case 2:
      return all_finite(data, count, array.dtype().kind() == 'f' ? kExponentF16 : kExponentBF16);
  }
  fail(ErrorKind::kDtypeMismatch, "is_finite: got values of ", array.itemsize(),
       " bytes, expected float16, bfloat16, float32 or float64");
}

}  // namespace

void bind_wire(py::module_& module) {
  module.def(
      "twofold_key",
      [](const py::buffer& json) -> std::optional<py::bytes> {
        py::buffer_info text = json.request();
        auto found =
            twofold_key({static_cast<const char*>(text.ptr), static_cast<size_t>(text.size)});
        if (!found) return {};
        return py::bytes(*found);
      },
      py::arg("json"),
      "A key that some object of a valid JSON text, in bytes, has twice; None if there is none.");
  module.def("is_finite", &is_finite, py::arg("array"),
             "Whether an array of floats of 2, 4 or 8 bytes has neither NaN nor Inf.");
}

}  // namespace headrace
