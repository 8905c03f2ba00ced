// Ops that change a tensor's shape and not its bytes.
#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

// Base of ops whose output is their first input's bytes under another shape.
class ViewOp : public Op {
 public:
  void run(const OpRun&) const final {}
  int alias() const final { return 0; }
};

class Identity : public ViewOp {
 public:
  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }
};

std::unique_ptr<Op> make_identity(const NodeSpec&) {
  return std::make_unique<Identity>();
}

}  // namespace

void register_shape_ops(OpRegistry& registry) {
  registry.add("Identity", make_identity);
}

}  // namespace headrace
