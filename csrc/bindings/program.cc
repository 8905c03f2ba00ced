#include "runtime/program.h"

#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace headrace {
namespace {

Isa isa_named(const std::string& name) {
  for (Isa isa : available_isas()) {
    if (name_of(isa) == name) return isa;
  }
  fail(ErrorKind::kBackendUnavailable, "got ISA '", name, "', which this CPU cannot run");
}

// Constants may be dropped from any thread and without the GIL.
std::shared_ptr<const void> shared_owner(std::unique_ptr<HeldTensor> held) {
  return {held.release(), [](const HeldTensor* tensor) {
            py::gil_scoped_acquire gil;
            delete tensor;
          }};
}

ValueId add_constant(ProgramBuilder& builder, const std::string& name, py::handle array) {
  auto held = std::make_unique<HeldTensor>(array, TensorName{"constant", name});
  ConstTensorView view = held->view();
  return builder.add_constant(name, view, shared_owner(std::move(held)));
}

std::vector<ValueId> add_op(ProgramBuilder& builder, std::string op, std::string name,
                            int64_t opset, std::map<std::string, Attribute, std::less<>> attributes,
                            const std::vector<ValueId>& inputs,
                            const std::vector<std::string>& output_names,
                            const std::vector<std::string>& output_dtypes) {
  NodeSpec node;
  node.op = std::move(op);
  node.name = std::move(name);
  node.opset = opset;
  node.attributes = std::move(attributes);
  for (const std::string& dtype : output_dtypes) node.output_dtypes.push_back(dtype_named(dtype));
  return builder.add_op(std::move(node), inputs, output_names);
}

}  // namespace

void bind_program(py::module_& module) {
  py::class_<Program>(module, "Program", "A finished flat list of ops. Given to one NativePlan.");
  py::class_<ProgramBuilder>(module, "ProgramBuilder", "Builds a Program in topological order.")
      .def(py::init([](const std::string& isa) { return ProgramBuilder(isa_named(isa)); }),
           py::arg("isa"))
      .def(
          "add_input",
          [](ProgramBuilder& builder, const std::string& name, const std::string& dtype,
             const py::sequence& dims) { return builder.add_input(to_spec(name, dtype, dims)); },
          py::arg("name"), py::arg("dtype"), py::arg("dims"), "Returns the value's id.")
      .def("add_constant", &add_constant, py::arg("name"), py::arg("array"),
           "Returns the value's id. The array is kept only while an op reads it.")
      .def("add_op", &add_op, py::arg("op"), py::arg("name"), py::arg("opset"),
           py::arg("attributes"), py::arg("inputs"), py::arg("output_names"),
           py::arg("output_dtypes"),
           "Returns the outputs' ids. Input id -1 is an absent input, output dtype '' an output "
           "nobody wants. Raises UnsupportedOp or InvalidModel.")
      .def(
          "add_output",
          [](ProgramBuilder& builder, const std::string& name, const std::string& dtype,
             const py::sequence& dims,
             ValueId value) { builder.add_output(to_spec(name, dtype, dims), value); },
          py::arg("name"), py::arg("dtype"), py::arg("dims"), py::arg("value"))
      .def("finish", &ProgramBuilder::finish, "Call once; the builder is empty afterwards.");
}

}  // namespace headrace
