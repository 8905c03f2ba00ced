#include "runtime/program.h"

#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/convert.h"
#include "core/mapped_file.h"

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

Shape shape_of(const std::vector<int64_t>& dims) {
  return Shape(std::span(dims));
}

// Memory of a saved Plan that kernels may use.
const std::byte* aligned_bytes(const MappedFile& file, int64_t offset, int64_t bytes) {
  if (offset % kPackAlignment != 0) {
    fail(ErrorKind::kInvalidPlan, file.path(), ": got data at byte ", offset,
         ", expected a multiple of ", kPackAlignment);
  }
  return file.bytes(offset, bytes).data();
}

ValueId add_mapped_constant(ProgramBuilder& builder, const std::string& name,
                            const std::string& dtype, const std::vector<int64_t>& dims,
                            const std::shared_ptr<MappedFile>& file, int64_t offset) {
  ConstTensorView view{dtype_named(dtype), shape_of(dims), nullptr};
  if (!view.present() || view.dtype == DType::kString) {
    fail(ErrorKind::kInvalidPlan, "constant '", name, "': got dtype '", dtype, "'");
  }
  view.data = aligned_bytes(*file, offset, view.bytes());
  return builder.add_constant(name, view, file);
}

ValueId add_packed_constant(ProgramBuilder& builder, const std::string& name,
                            const std::string& dtype, const std::vector<int64_t>& dims) {
  return builder.add_constant(name, {dtype_named(dtype), shape_of(dims), nullptr}, nullptr);
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
                            const std::vector<std::string>& output_dtypes,
                            const std::optional<std::shared_ptr<MappedFile>>& file,
                            const std::vector<std::pair<int64_t, int64_t>>& packs) {
  NodeSpec node;
  node.op = std::move(op);
  node.name = std::move(name);
  node.opset = opset;
  node.attributes = std::move(attributes);
  for (const std::string& dtype : output_dtypes) node.output_dtypes.push_back(dtype_named(dtype));
  if (!file) return builder.add_op(std::move(node), inputs, output_names);
  std::vector<Packed> saved;
  for (auto [offset, bytes] : packs) {
    saved.emplace_back(aligned_bytes(**file, offset, bytes), bytes, *file);
  }
  return builder.add_op(std::move(node), inputs, output_names, std::move(saved));
}

}  // namespace

void bind_program(py::module_& module) {
  py::class_<Program>(module, "Program", "A finished flat list of ops. Given to one NativePlan.");
  py::class_<ProgramBuilder>(module, "ProgramBuilder", "Builds a Program in topological order.")
      .def(py::init([](const std::string& isa, bool keep_constants) {
             return ProgramBuilder(isa_named(isa), keep_constants);
           }),
           py::arg("isa"), py::arg("keep_constants") = false,
           "With `keep_constants`, those that ops have packed stay, for a device that packs them "
           "in its own way.")
      .def(
          "add_input",
          [](ProgramBuilder& builder, const std::string& name, const std::string& dtype,
             const py::sequence& dims) { return builder.add_input(to_spec(name, dtype, dims)); },
          py::arg("name"), py::arg("dtype"), py::arg("dims"), "Returns the value's id.")
      .def("add_constant", &add_constant, py::arg("name"), py::arg("array"),
           "Returns the value's id. The array is kept only while an op reads it.")
      .def("add_mapped_constant", &add_mapped_constant, py::arg("name"), py::arg("dtype"),
           py::arg("dims"), py::arg("file"), py::arg("offset"),
           "A constant, not of strings, that is read where it lies in a saved Plan's file.")
      .def("add_packed_constant", &add_packed_constant, py::arg("name"), py::arg("dtype"),
           py::arg("dims"), "A constant of a saved Plan of which only packed memory is left.")
      .def("add_op", &add_op, py::arg("op"), py::arg("name"), py::arg("opset"),
           py::arg("attributes"), py::arg("inputs"), py::arg("output_names"),
           py::arg("output_dtypes"), py::arg("file") = py::none(),
           py::arg("packs") = std::vector<std::pair<int64_t, int64_t>>(),
           "Returns the outputs' ids. Input id -1 is an absent input, output dtype '' an output "
           "nobody wants. With a saved Plan's file, `packs` are the (offset, bytes) of what the op "
           "packed. Raises UnsupportedOp, InvalidModel or InvalidPlan.")
      .def(
          "add_output",
          [](ProgramBuilder& builder, const std::string& name, const std::string& dtype,
             const py::sequence& dims,
             ValueId value) { builder.add_output(to_spec(name, dtype, dims), value); },
          py::arg("name"), py::arg("dtype"), py::arg("dims"), py::arg("value"))
      .def("finish", &ProgramBuilder::finish, "Call once; the builder is empty afterwards.");
}

}  // namespace headrace
