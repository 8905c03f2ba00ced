// A Program: the flat list of ops that a compiled Model is, and the builder that checks it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ops/op.h"
#include "runtime/signature.h"

namespace headrace {

using ValueId = int32_t;
inline constexpr ValueId kAbsent = -1;

struct Value {
  DType dtype = DType::kNone;
  std::string name;
  bool constant = false;
  Shape shape{};  // a constant's
  // For constants that some op reads at run time: the data and whoever keeps it alive.
  ConstTensorView data{};
  std::shared_ptr<const void> owner{};
  // The value whose storage this one shares: itself, unless an op aliases its input.
  ValueId root = kAbsent;
  // Of a root: exactly one output of the Program lies in its storage.
  bool result = false;
  // Lives within one chain of row-wise steps.
  bool inner = false;
};

// One op of the Program with everything about memory that is known before any shape is.
struct Step {
  std::string op;
  std::string name;
  int64_t opset = 0;
  Attributes attributes{};
  std::vector<Packed> packs{};  // what the kernel packed, for saving it
  std::unique_ptr<Op> kernel;
  std::vector<ValueId> inputs{};   // kAbsent for absent optional ones
  std::vector<ValueId> outputs{};  // kAbsent for ones nobody wants
  bool aliases = false;            // output 0 shares its input's storage; nothing is run
  int overwrites = -1;             // the input whose storage output 0 may take over, or -1
  std::vector<ValueId> dead{};     // roots that nobody reads after this step
  int chain = 1;                   // steps of the row-wise chain that begins here (chain.h)
  int images = 0;                  // image-wise steps from here on, one after the other
  int elements = 0;                // element-wise steps likewise
};

struct Program {
  Program() = default;
  Program(Program&&) = default;
  Program& operator=(Program&&) = default;

  Signature signature;
  std::vector<Value> values;
  std::vector<Step> steps;
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  int64_t packed_bytes = 0;    // held by kernels
  int64_t constant_bytes = 0;  // held as constants
};

// Builds a Program node by node, in topological order. Ops are made, and weights packed, as they
// come, so that the caller may let go of each constant right after the last op that uses it.
class ProgramBuilder {
 public:
  // With `keep_constants` none are dropped, for a device whose kernels pack them in their own way.
  explicit ProgramBuilder(Isa isa, bool keep_constants = false)
      : isa_(isa), keep_constants_(keep_constants) {}

  ValueId add_input(TensorSpec spec);
  // `owner` keeps `data` alive. The same value must not be an input of the Model. Saved Plans lack
  // the data (null) of constants that every op using them consumes.
  ValueId add_constant(std::string name, ConstTensorView data, std::shared_ptr<const void> owner);
  // Adds a node and returns its outputs' ids. `node` comes with op, name, opset, attributes and
  // output_dtypes; the rest is filled in here. An output dtype of kNone is not wanted.
  // `saved` is what the op packed when a saved Plan was made.
  // Throws Error(kUnsupportedOp | kInvalidModel | kInvalidPlan).
  std::vector<ValueId> add_op(NodeSpec node, const std::vector<ValueId>& inputs,
                              const std::vector<std::string>& output_names,
                              std::optional<std::vector<Packed>> saved = std::nullopt);
  // Throws Error(kInvalidModel) if there is no such value.
  void add_output(TensorSpec spec, ValueId value);
  // Call once. Drops constants that no op reads any more and plans storage.
  Program finish();

 private:
  void plan_storage();
  void drop_constants();

  Isa isa_;
  bool keep_constants_;
  PackMemory pack_memory_;
  Program program_;
  std::vector<TensorSpec> input_specs_;
  std::vector<TensorSpec> output_specs_;
};

}  // namespace headrace
