#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "core/cpu.h"
#include "ops/op.h"
#include "runtime/fingerprint.h"

namespace py = pybind11;

namespace headrace {

void bind_hardware(py::module_& module) {
  module.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : available_isas()) names.emplace_back(name_of(isa));
        return names;
      },
      "The ISAs whose kernels this CPU can run, slowest first.");
  module.def(
      "selected_isa", [] { return std::string(name_of(selected_isa())); },
      "The ISA for new Plans: HEADRACE_ISA if set, else the fastest. Raises BackendUnavailable.");
  module.def(
      "fingerprint", [] { return std::string(fingerprint()); },
      "Names the build: a digest of the sources that decide what saved Plans mean.");
  module.def(
      "registered_ops", [] { return OpRegistry::global().names(); },
      "The ops the native runtime has kernels for, with the domain in front if it is not ONNX's.");
}

}  // namespace headrace
