// The C++ side of the error tree. The bindings map each kind to the Python class of the same name.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace headrace {

enum class ErrorKind {
  kInvalidModel,
  kInvalidPlan,
  kUnsupportedOp,
  kMissingInput,
  kUnknownInput,
  kShapeMismatch,
  kDtypeMismatch,
  kOverloaded,
  kDeadlineExceeded,
  kCancelled,
  kBackendUnavailable,
  kExecution,
};

// Thrown for every expected failure. `what()` says what was got, what was expected, and where.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Refused at admission. `retry_after_s` is when a new attempt is likely to be admitted.
class OverloadedError : public Error {
 public:
  OverloadedError(const std::string& message, double retry_after_s)
      : Error(ErrorKind::kOverloaded, message), retry_after_s_(retry_after_s) {}
  double retry_after_s() const { return retry_after_s_; }

 private:
  double retry_after_s_;
};

// A node of a Model that has no kernel, or whose variant its kernel cannot run.
class UnsupportedOpError : public Error {
 public:
  UnsupportedOpError(std::string op, std::string node, std::string reason)
      : Error(ErrorKind::kUnsupportedOp, op + " (node '" + node + "'): " + reason),
        op_(std::move(op)),
        node_(std::move(node)),
        reason_(std::move(reason)) {}
  const std::string& op() const { return op_; }
  const std::string& node() const { return node_; }
  const std::string& reason() const { return reason_; }

 private:
  std::string op_;
  std::string node_;
  std::string reason_;
};

// Joins its arguments into one string, for messages: str("got ", n, ", expected ", m).
template <class... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

template <class... Args>
[[noreturn]] void fail(ErrorKind kind, const Args&... args) {
  throw Error(kind, str(args...));
}

}  // namespace headrace
