// A test build's fault: the op or node that the environment variable HEADRACE_PLANT_WRONG names
// computes a wrong last element. No build that ships has this file.
#include <cstdlib>
#include <string_view>
#include <utility>

#include "ops/op.h"

namespace headrace {
namespace {

class PlantedOp : public Op {
 public:
  explicit PlantedOp(std::unique_ptr<Op> right) : right_(std::move(right)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    right_->infer(inputs, outputs);
  }
  void run(const OpRun& run) const override {
    right_->run(run);
    const Segments& output = run.output(0);
    if (output.dtype != DType::kF32) return;
    for (size_t request = 0; request < run.requests(); ++request) {
      TensorView view = output.view(request);
      if (view.elements() == 0) continue;
      float& last = view.span<float>().back();
      last = last * 1.5f + 0.5f;
    }
  }
  int alias() const override { return right_->alias(); }
  bool can_overwrite(size_t input) const override { return right_->can_overwrite(input); }
  bool row_wise() const override { return right_->row_wise(); }
  bool image_wise() const override { return right_->image_wise(); }
  bool consumes(size_t input) const override { return right_->consumes(input); }
  int64_t packed_bytes() const override { return right_->packed_bytes(); }

 private:
  std::unique_ptr<Op> right_;
};

}  // namespace

std::unique_ptr<Op> plant_wrong(const NodeSpec& node, std::unique_ptr<Op> right) {
  const char* planted = std::getenv("HEADRACE_PLANT_WRONG");
  if (planted == nullptr || (node.op != planted && node.name != planted)) return right;
  return std::make_unique<PlantedOp>(std::move(right));
}

}  // namespace headrace
