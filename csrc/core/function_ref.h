// A borrowed callable: two pointers, no allocation. The callee must outlive the call.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace headrace {

template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& callee)  // NOLINT(google-explicit-constructor): made implicitly from lambdas
      : callee_(const_cast<void*>(static_cast<const void*>(std::addressof(callee)))),
        call_([](void* callee, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(callee))(std::forward<Args>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(callee_, std::forward<Args>(args)...); }

 private:
  void* callee_;
  R (*call_)(void*, Args...);
};

}  // namespace headrace
