// The parts of the extension module headrace._core, one function per file.
#pragma once

#include <pybind11/pybind11.h>

namespace headrace {

void bind_errors(pybind11::module_& module);
void bind_hardware(pybind11::module_& module);
void bind_wire(pybind11::module_& module);
void bind_signature(pybind11::module_& module);
void bind_program(pybind11::module_& module);
void bind_mapped_file(pybind11::module_& module);
void bind_plan(pybind11::module_& module);
void bind_batcher(pybind11::module_& module);
void bind_simulate(pybind11::module_& module);

}  // namespace headrace
