// Giving the GIL away while C++ works or waits, in a process that may end meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace headrace {

// What a thread does that is no use any more, until the process is gone.
[[noreturn]] inline void wait_for_the_end() {
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Releases the GIL, and holds it again when it goes. A thread that asks for the GIL while Python
// ends is ended by CPython before 3.14, by pthread_exit: that would unwind our stack as an
// exception does, without the GIL, and end the process where it meets a noexcept. Python 3.14 has
// the thread wait instead, and so does this.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // nothing but pthread_exit
      wait_for_the_end();
    }
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// Calls what needs the GIL on a thread that does not hold it. For ends of the process as above.
template <class Function>
void with_gil(Function function) {
#if defined(__GLIBCXX__)
  try {
    pybind11::gil_scoped_acquire acquire;
    function();
  } catch (abi::__forced_unwind&) {
    wait_for_the_end();
  }
#else
  pybind11::gil_scoped_acquire acquire;
  function();
#endif
}

}  // namespace headrace
