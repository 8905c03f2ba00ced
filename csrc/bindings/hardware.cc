#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/gil.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/figures.h"
#include "ops/op.h"
#include "runtime/fingerprint.h"

namespace py = pybind11;

namespace headrace {
namespace {

void check_threads(int threads) {
  if (threads < 1) {
    fail(ErrorKind::kBackendUnavailable, "got threads=", threads, ", expected at least 1");
  }
}

}  // namespace

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
  module.def(
      "fork_join_seconds",
      [](int threads) {
        check_threads(threads);
        GilReleased released;
        return fork_join_seconds(threads);
      },
      py::arg("threads"),
      "Measures what starting and ending a parallel region costs, in seconds: some milliseconds.");
  module.def(
      "copy_bytes_per_second",
      [](int threads, int64_t bytes) {
        check_threads(threads);
        GilReleased released;
        return copy_bytes_per_second(threads, bytes);
      },
      py::arg("threads"), py::arg("bytes"),
      "Measures copying from one buffer of `bytes` to another: bytes read plus bytes written.");
}

}  // namespace headrace
