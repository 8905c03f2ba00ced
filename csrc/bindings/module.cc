#include "bindings/bind.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ runtime of Headrace. Private: use the headrace package.";
  headrace::bind_errors(module);
  headrace::bind_hardware(module);
  headrace::bind_wire(module);
  headrace::bind_signature(module);
  headrace::bind_mapped_file(module);
  headrace::bind_program(module);
  headrace::bind_plan(module);
  headrace::bind_batcher(module);
  headrace::bind_simulate(module);
}
