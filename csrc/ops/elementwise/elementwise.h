// Elementwise ops: one loop over elements, numpy broadcasting around it.
#pragma once

#include "ops/node_inputs.h"

namespace headrace {

// The innermost loop's work: n elements of up to three inputs, each stepping by 0 or more elements.
struct LoopArgs {
  static constexpr int kMaxInputs = 3;
  const void* in[kMaxInputs];
  int64_t step[kMaxInputs];
  void* out;
  int64_t n;
  const void* params;  // what the op gave to run_broadcast
  bool streams;        // the output is large and no input: store past the caches

  template <class T>
  const T* input(int i) const {
    return static_cast<const T*>(in[i]);
  }
  template <class T>
  T* output() const {
    return static_cast<T*>(out);
  }
};
using ElementLoop = void (*)(const LoopArgs&);

// Runs `loop` over every element of `output` with the inputs broadcast to it. Where all inputs of
// all Requests are full, one row, one column or one scalar, the loop runs over the rows of all
// Requests at once; otherwise Request by Request.
void run_broadcast(const OpRun& run, std::span<const Segments> inputs, const Segments& output,
                   ElementLoop loop, const void* params = nullptr);

// An op that is nothing but its loop.
class ElementwiseOp : public Op {
 public:
  // `swapped` hands the loop its two inputs the other way round. `overwrites` has bit i set if
  // the output may be computed in place of input i.
  ElementwiseOp(ElementLoop loop, unsigned overwrites, bool swapped = false)
      : loop_(loop), overwrites_(overwrites), swapped_(swapped) {}
  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override { return (overwrites_ >> input & 1) != 0; }
  bool element_wise() const override { return true; }

 private:
  ElementLoop loop_;
  unsigned overwrites_;
  bool swapped_;
};

// Loops for one element type, from a functor of values: out[i] = f(a[i]) and f(a[i], b[i]).
template <class F, class A, class R>
void unary_loop(const LoopArgs& args) {
  const A* a = args.input<A>(0);
  R* out = args.output<R>();
  int64_t step = args.step[0];
  if (step == 1) {
    for (int64_t i = 0; i < args.n; ++i) out[i] = R(F()(a[i]));
  } else {
    for (int64_t i = 0; i < args.n; ++i) out[i] = R(F()(a[i * step]));
  }
}

template <class F, class A, class B, class R>
void binary_loop(const LoopArgs& args) {
  const A* a = args.input<A>(0);
  const B* b = args.input<B>(1);
  R* out = args.output<R>();
  int64_t step_a = args.step[0];
  int64_t step_b = args.step[1];
  if (step_a == 1 && step_b == 1) {
    for (int64_t i = 0; i < args.n; ++i) out[i] = R(F()(a[i], b[i]));
  } else {
    for (int64_t i = 0; i < args.n; ++i) out[i] = R(F()(a[i * step_a], b[i * step_b]));
  }
}

void register_arithmetic(OpRegistry& registry);
void register_comparison(OpRegistry& registry);
void register_bitwise(OpRegistry& registry);
void register_power(OpRegistry& registry);
void register_variadic(OpRegistry& registry);
void register_select(OpRegistry& registry);
void register_cast(OpRegistry& registry);
void register_predicates(OpRegistry& registry);

}  // namespace headrace
