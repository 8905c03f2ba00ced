// Maps the C++ error kinds to the classes in headrace.errors.
#include "core/error.h"

#include "bindings/bind.h"

namespace py = pybind11;

namespace headrace {
namespace {

const char* python_class(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidModel:
      return "InvalidModel";
    case ErrorKind::kInvalidPlan:
      return "InvalidPlan";
    case ErrorKind::kUnsupportedOp:
      return "UnsupportedOp";
    case ErrorKind::kMissingInput:
      return "MissingInput";
    case ErrorKind::kUnknownInput:
      return "UnknownInput";
    case ErrorKind::kShapeMismatch:
      return "ShapeMismatch";
    case ErrorKind::kDtypeMismatch:
      return "DtypeMismatch";
    case ErrorKind::kOverloaded:
      return "Overloaded";
    case ErrorKind::kDeadlineExceeded:
      return "DeadlineExceeded";
    case ErrorKind::kCancelled:
      return "Cancelled";
    case ErrorKind::kBackendUnavailable:
      return "BackendUnavailable";
    case ErrorKind::kExecution:
      return "ExecutionError";
  }
  return "HeadraceError";
}

void raise(const char* name, const py::tuple& arguments) {
  py::object type = py::module_::import("headrace.errors").attr(name);
  PyErr_SetObject(type.ptr(), type(*arguments).ptr());
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      std::rethrow_exception(pointer);
    } catch (const UnsupportedOpError& error) {
      py::list nodes;
      nodes.append(py::make_tuple(error.op(), error.node(), error.reason()));
      raise("UnsupportedOp", py::make_tuple("native", nodes));
    } catch (const OverloadedError& error) {
      raise("Overloaded", py::make_tuple(error.what(), error.retry_after_s()));
    } catch (const Error& error) {
      raise(python_class(error.kind()), py::make_tuple(error.what()));
    }
  });
}

}  // namespace headrace
