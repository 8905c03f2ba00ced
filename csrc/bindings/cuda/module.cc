// The extension module headrace._cuda: Programs of headrace._core on a CUDA device. The same
// sources make headrace._cuda_on_host, which only tests have.
#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "bindings/gil.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace headrace {
namespace {

using cuda::DevicePlan;
using cuda::DeviceRun;

py::list run_batch(DevicePlan& plan, const std::vector<py::dict>& requests) {
  py::list results;
  if (requests.empty()) return results;
  const Signature& signature = plan.program().signature;
  std::vector<HeldRequest> held;
  std::vector<RequestInputs> inputs;
  held.reserve(requests.size());
  for (const py::dict& request : requests) held.emplace_back(signature, request);
  for (const HeldRequest& request : held) inputs.push_back(request.inputs());
  DeviceRun run = [&] {
    GilReleased released;
    return plan.run(inputs);
  }();
  for (size_t r = 0; r < requests.size(); ++r) {
    results.append(to_result(signature, [&](size_t o) { return to_numpy(run.output(r, o)); }));
  }
  return results;
}

std::shared_ptr<DevicePlan> make_plan(Program& program, int device, const std::string& cublaslt,
                                      std::vector<std::string> libraries) {
  using Use = cuda::ProductSettings::Use;
  Use use = cublaslt == "on" ? Use::kOn : cublaslt == "auto" ? Use::kAuto : Use::kOff;
  return std::make_shared<DevicePlan>(std::move(program), cuda::open_device(device),
                                      cuda::ProductSettings{use, std::move(libraries)});
}

// The version of the cuBLASLt that a Plan would use.
std::string cublaslt_version(int index, const std::vector<std::string>& libraries) {
  std::shared_ptr<cuda::Device> device = cuda::open_device(index);
  cuda::OnDevice here(*device);
  return cuda::CublasLt::open(device, libraries)->version();
}

py::dict describe_products(const DevicePlan& plan) {
  const cuda::Products& products = plan.products();
  return py::dict(py::arg("cublaslt") = products.version(),
                  py::arg("by_cublaslt") = products.by_library(),
                  py::arg("by_own_kernels") = products.by_own_kernels(),
                  py::arg("reasons") = products.reasons());
}

// All nodes at once, which headrace._core's own translator knows nothing of.
void translate_refusals(std::exception_ptr pointer) {
  try {
    std::rethrow_exception(pointer);
  } catch (const cuda::RefusedOps& error) {
    py::list nodes;
    for (const auto& node : error.nodes()) {
      nodes.append(py::make_tuple(node.op, node.name, node.reason));
    }
    py::object type = py::module_::import("headrace.errors").attr("UnsupportedOp");
    PyErr_SetObject(type.ptr(), type("native", nodes).ptr());
  }
}

py::dict describe_device(int index) {
  cuda::DeviceInfo info = cuda::open_device(index)->info();
  return py::dict(py::arg("name") = info.name, py::arg("major") = info.major,
                  py::arg("minor") = info.minor, py::arg("memory_bytes") = info.memory_bytes);
}

std::vector<std::string> ops_on_device(const DevicePlan& plan) {
  std::vector<std::string> ops;
  for (size_t s = 0; s < plan.program().steps.size(); ++s) {
    if (plan.step(s).place == cuda::Place::kDevice) ops.push_back(plan.program().steps[s].op);
  }
  return ops;
}

}  // namespace
}  // namespace headrace

PYBIND11_MODULE(HEADRACE_CUDA_MODULE, module) {
  using namespace headrace;
  module.doc() = "Headrace's CUDA device. Private: use the headrace package.";
  py::module_::import("headrace._core");  // its Program, and its errors
  py::register_exception_translator(translate_refusals);
  module.def("count_devices", &cuda::count_devices,
             "How many devices there are. Raises BackendUnavailable where there is none.");
  module.def("describe_device", &describe_device, py::arg("index"),
             "name, major and minor (compute capability) and memory_bytes of a device. Raises "
             "BackendUnavailable where there is none.");
  module.def("cublaslt_version", &cublaslt_version, py::arg("device"), py::arg("libraries"),
             "The version of the first of these libraries, paths or names for the loader, that can "
             "be used. Raises BackendUnavailable that says why each cannot.");
  module.def(
      "ops", [] { return cuda::CudaRegistry::global().names(); }, "The ops that have kernels.");
  // Local, since a process may load both modules.
  py::class_<DevicePlan, std::shared_ptr<DevicePlan>>(module, "CudaPlan", py::module_local(),
                                                      "A Program on a device.")
      .def(py::init(&make_plan), py::arg("program"), py::arg("device"), py::arg("cublaslt"),
           py::arg("libraries"),
           "Takes the program's contents, which must have kept its constants. `cublaslt` is auto, "
           "on or off, `libraries` is where to look for it. Raises UnsupportedOp with every node "
           "that has no kernel, and BackendUnavailable where cuBLASLt is on and cannot be used.")
      .def("run_batch", &run_batch, py::arg("requests"),
           "Runs Requests of any shapes together, in lockstep.")
      .def_property_readonly("ops_on_device", &ops_on_device)
      .def_property_readonly("products", &describe_products,
                             "Who computes those with constant matrices: the version of cuBLASLt, "
                             "by_cublaslt, by_own_kernels, and the reasons for the latter.")
      .def_property_readonly("weight_bytes", &DevicePlan::weight_bytes)
      .def_property_readonly("held_bytes", &DevicePlan::held_bytes);
}
