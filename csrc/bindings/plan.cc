#include "runtime/plan.h"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings/bind.h"
#include "bindings/convert.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace headrace {
namespace {

using ResultDict = py::typing::Dict<py::str, py::array>;

// Runs with the GIL released; an error comes out with it held again.
Run run_released(Plan& plan, std::span<const RequestInputs> requests,
                 std::vector<StepTime>* profile) {
  GilReleased released;
  return plan.run(requests, profile);
}

ResultDict run_one(Plan& plan, const py::dict& request) {
  const Signature& signature = plan.program().signature;
  HeldRequest held(signature, request);
  RequestInputs inputs = held.inputs();
  Run run = run_released(plan, {&inputs, 1}, nullptr);
  return to_result(signature, [&](size_t output) {
    ConstTensorView tensor = run.output(0, output);
    Block block = run.take_output(output);
    bool keeps = block && tensor.dtype != DType::kString;
    return keeps ? keep_numpy(tensor, std::move(block)) : to_numpy(tensor);
  });
}

py::typing::List<ResultDict> run_batch(Plan& plan, const std::vector<py::dict>& requests,
                                       std::vector<StepTime>* profile) {
  const Signature& signature = plan.program().signature;
  std::vector<HeldRequest> held;
  std::vector<RequestInputs> inputs;
  held.reserve(requests.size());
  for (const py::dict& request : requests) held.emplace_back(signature, request);
  for (const HeldRequest& request : held) inputs.push_back(request.inputs());
  py::typing::List<ResultDict> results;
  if (requests.empty()) return results;
  Run run = run_released(plan, inputs, profile);
  for (size_t r = 0; r < requests.size(); ++r) {
    results.append(
        to_result(signature, [&](size_t output) { return to_numpy(run.output(r, output)); }));
  }
  return results;
}

// Bytes that `owner` keeps alive, read-only.
py::array bytes_of(const void* data, int64_t bytes, py::handle owner) {
  py::array array(py::dtype("uint8"), {static_cast<py::ssize_t>(bytes)}, data, owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

py::list describe_constants(const Program& program, py::handle owner) {
  py::list constants;
  for (size_t v = 0; v < program.values.size(); ++v) {
    const Value& value = program.values[v];
    if (!value.constant) continue;
    py::object data = py::none();
    if (value.data.dtype == DType::kString) {
      data = to_numpy(value.data).attr("ravel")().attr("tolist")();
    } else if (value.data.present()) {
      data = bytes_of(value.data.data, value.data.bytes(), owner);
    }
    std::span<const int64_t> dims = value.shape.dims();
    constants.append(py::dict(py::arg("id") = v, py::arg("name") = value.name,
                              py::arg("dtype") = std::string(name_of(value.dtype)),
                              py::arg("dims") = std::vector<int64_t>(dims.begin(), dims.end()),
                              py::arg("data") = data));
  }
  return constants;
}

py::list describe_nodes(const Program& program, py::handle owner) {
  py::list nodes;
  for (const Step& step : program.steps) {
    py::list outputs;
    for (ValueId id : step.outputs) {
      const Value* value = id == kAbsent ? nullptr : &program.values[static_cast<size_t>(id)];
      outputs.append(py::make_tuple(id, value ? value->name : "",
                                    value ? std::string(name_of(value->dtype)) : ""));
    }
    py::list packs;
    for (const Packed& packed : step.packs) {
      packs.append(bytes_of(packed.data(), packed.bytes(), owner));
    }
    nodes.append(py::dict(py::arg("op") = step.op, py::arg("name") = step.name,
                          py::arg("opset") = step.opset, py::arg("attributes") = step.attributes,
                          py::arg("inputs") = step.inputs, py::arg("outputs") = outputs,
                          py::arg("packs") = packs));
  }
  return nodes;
}

using Description = py::typing::Dict<py::str, py::object>;

// What a saved Plan is made of.
Description describe(const py::object& self) {
  const Program& program = self.cast<const Plan&>().program();
  Description description;
  description["inputs"] = program.inputs;
  description["constants"] = describe_constants(program, self);
  description["nodes"] = describe_nodes(program, self);
  description["outputs"] = program.outputs;
  return description;
}

}  // namespace

void bind_plan(py::module_& module) {
  py::class_<StepValue>(module, "StepValue", "A tensor that an op read or wrote.")
      .def_property_readonly(
          "dtype", [](const StepValue& value) { return std::string(name_of(value.dtype)); },
          "\"none\" for an absent optional input or output.")
      .def_property_readonly(
          "shape",
          [](const StepValue& value) {
            return std::vector<int64_t>(value.shape.dims().begin(), value.shape.dims().end());
          },
          "Its dims; the first Request's where Requests differ.")
      .def_readonly("constant", &StepValue::constant);
  py::class_<StepTime>(module, "StepTime", "What one op of a profiled Batch took.")
      .def_readonly("op", &StepTime::op)
      .def_readonly("name", &StepTime::name, "The node's name.")
      .def_readonly("ns", &StepTime::ns, "Nanoseconds for all Requests together.")
      .def_readonly("inputs", &StepTime::inputs)
      .def_readonly("outputs", &StepTime::outputs);
  py::class_<Plan, std::shared_ptr<Plan>>(module, "NativePlan",
                                          "A Program with the threads that run it.")
      .def(py::init([](Program& program, int threads) {
             if (threads < 1) {
               fail(ErrorKind::kBackendUnavailable, "got threads=", threads,
                    ", expected at least 1");
             }
             return std::make_shared<Plan>(std::move(program), threads);
           }),
           py::arg("program"), py::arg("threads"), "Takes the program's contents.")
      .def("run", &run_one, py::arg("request"), "Runs one Request alone.")
      .def(
          "run_batch",
          [](Plan& plan, const std::vector<py::dict>& requests) {
            return run_batch(plan, requests, nullptr);
          },
          py::arg("requests"), "Runs Requests of any shapes together, in lockstep.")
      .def(
          "profile",
          [](Plan& plan, const std::vector<py::dict>& requests) {
            std::vector<StepTime> times;
            run_batch(plan, requests, &times);
            return times;
          },
          py::arg("requests"), "Runs a Batch and returns what each op took.")
      .def("describe", &describe,
           "Values by id: the inputs; the constants (id, name, dtype, dims and data: bytes, a list "
           "of str, or None where ops have packed it); the nodes (op, name, opset, attributes, "
           "inputs, outputs as (id, name, dtype), and packs: bytes); the outputs.")
      .def_property_readonly("threads", &Plan::threads)
      .def_property_readonly("packed_bytes",
                             [](const Plan& plan) { return plan.program().packed_bytes; })
      .def_property_readonly("constant_bytes",
                             [](const Plan& plan) { return plan.program().constant_bytes; })
      .def_property_readonly("arena_bytes", [](Plan& plan) { return plan.arena_bytes(); })
      .def_property_readonly("ops", [](const Plan& plan) {
        std::vector<std::string> ops;
        for (const Step& step : plan.program().steps) ops.push_back(step.op);
        return ops;
      });
}

}  // namespace headrace
