// A stack of its own for a piece of work that stops in the middle and goes on later, for
// cuda_on_host.h. AddressSanitizer is told of every switch.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace headrace::on_host {

// A stack on which lanes run, one after the other.
class Fiber {
 public:
  Fiber() : stack_(new unsigned char[kStackBytes]) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  }

  // Gives it a new lane's work; only where the last one has ended.
  void assign(std::function<void()> body) {
    body_ = std::move(body);
    ended_ = false;
  }
  bool ended() const { return ended_; }

  // Runs until the lane waits or ends; rethrows what it threw.
  void resume() {
    switch_to(context_, caller_, stack_.get(), kStackBytes);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }
  // From within: lets the scheduler go on.
  void suspend() { switch_to(caller_, context_, caller_stack_, caller_bytes_); }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;

  static void enter(unsigned high, unsigned low) {
    auto* fiber = reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
    fiber->arrive(nullptr);
    while (true) {
      try {
        fiber->body_();
      } catch (...) {
        fiber->failure_ = std::current_exception();
      }
      fiber->ended_ = true;
      fiber->suspend();
    }
  }

#if defined(__SANITIZE_ADDRESS__)
  void switch_to(ucontext_t& to, ucontext_t& from, const void* stack, size_t bytes) {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, bytes);
    swapcontext(&from, &to);
    arrive(fake);
  }
  // Learns, inside a fiber, where the stack is that it was resumed from.
  void arrive(void* fake) {
    const void* stack = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake, &stack, &bytes);
    if (stack == stack_.get()) return;
    caller_stack_ = stack;
    caller_bytes_ = bytes;
  }
#else
  void switch_to(ucontext_t& to, ucontext_t& from, const void*, size_t) { swapcontext(&from, &to); }
  void arrive(void*) {}
#endif

  std::unique_ptr<unsigned char[]> stack_;
  ucontext_t context_{}, caller_{};
  const void* caller_stack_ = nullptr;
  size_t caller_bytes_ = 0;
  std::function<void()> body_;
  std::exception_ptr failure_;
  bool ended_ = true;
};

}  // namespace headrace::on_host
