#include "core/mapped_file.h"

#include "bindings/bind.h"
#include "bindings/gil.h"
#include "core/hash.h"

namespace py = pybind11;

namespace headrace {

void bind_mapped_file(py::module_& module) {
  module.def(
      "hash_bytes",
      [](const py::bytes& bytes) {
        std::string_view view = bytes;
        return hash_bytes(std::as_bytes(std::span(view)));
      },
      py::arg("bytes"), "64 bits that any damage changes; no protection against intent.");
  // Constants and packed memory share it; constness is the mapping's own.
  py::class_<MappedFile, std::shared_ptr<MappedFile>>(
      module, "MappedFile", "A whole file in memory, read-only; processes share its pages.")
      .def(py::init<const std::string&>(), py::arg("path"), "Raises InvalidPlan.")
      .def_property_readonly("size", &MappedFile::size)
      .def(
          "read",
          [](const MappedFile& file, int64_t offset, int64_t length) {
            std::span<const std::byte> bytes = file.bytes(offset, length);
            return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          },
          py::arg("offset"), py::arg("length"), "A copy. Raises InvalidPlan.")
      .def(
          "hash",
          [](const MappedFile& file, int64_t offset, int64_t length) {
            std::span<const std::byte> bytes = file.bytes(offset, length);
            GilReleased released;
            return hash_bytes(bytes);
          },
          py::arg("offset"), py::arg("length"), "`hash_bytes` of a part, without the GIL.");
}

}  // namespace headrace
