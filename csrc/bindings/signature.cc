#include "runtime/signature.h"

#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace headrace {
namespace {

using SpecTuple = std::tuple<std::string, std::string, py::sequence>;

std::vector<TensorSpec> to_specs(const std::vector<SpecTuple>& tuples) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, dtype, dims] : tuples) specs.push_back(to_spec(name, dtype, dims));
  return specs;
}

// The Request as the dict of C-contiguous numpy arrays that Executables are promised.
py::dict checked(const Signature& signature, const py::dict& request) {
  HeldRequest held(signature, request);
  py::module_ numpy = py::module_::import("numpy");
  py::dict arrays;
  for (const TensorSpec& spec : signature.inputs()) {
    py::str name(spec.name);
    py::object value = request[name];
    if (spec.dtype == DType::kString) {
      arrays[name] = to_numpy(held.inputs()[static_cast<size_t>(signature.input_index(spec.name))]);
    } else {
      // Not ascontiguousarray, which turns a scalar into a vector.
      arrays[name] = numpy.attr("asarray")(value, py::arg("order") = "C");
    }
  }
  return arrays;
}

}  // namespace

void bind_signature(py::module_& module) {
  py::class_<Signature>(module, "Signature", "Checks Requests against named inputs.")
      .def(
          py::init([](const std::vector<SpecTuple>& inputs, const std::vector<SpecTuple>& outputs) {
            return Signature(to_specs(inputs), to_specs(outputs));
          }),
          py::arg("inputs"), py::arg("outputs"),
          "Each entry is (name, dtype, dims), dims being ints and symbol names.")
      .def("check", &checked, py::arg("request"),
           "The Request as C-contiguous numpy arrays; raises a RequestError if it does not fit.")
      .def(
          "work",
          [](const Signature& signature, const py::dict& request) {
            return signature.work(HeldRequest(signature, request).inputs());
          },
          py::arg("request"), "The size of a Request for the cost model: rows, tokens.");
}

}  // namespace headrace
