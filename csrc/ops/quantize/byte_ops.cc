// headrace.QuantizedAdd and headrace.QuantizedMap: elementwise on bytes.
#include <algorithm>

#include "ops/linear/static_int8.h"
#include "ops/quantize/quantize.h"
#include "ops/quantize/quantize_kernels.h"
#include "ops/rows.h"

namespace headrace {
namespace {

// Calls range(request, begin, end) for all elements of all Requests.
template <class Range>
void for_elements(const OpRun& run, Range range) {
  auto elements = [&](size_t r) { return run.output(0).shape(r).elements(); };
  for_rows(run, kMinElementsPerThread, elements, range);
}

// Y = act(A + B) for tensors of one shape: attributes a_scale, a_zero_point and so on for b and y,
// activation (none, relu or clip) and its bounds.
class QuantizedAdd : public Op {
 public:
  explicit QuantizedAdd(const NodeSpec& node)
      : kernels_(HEADRACE_KERNELS(node.isa, quantize_kernels)) {
    require_inputs(node, 2);
    StaticTensor a(node, "a", node.input_dtypes[0]);
    StaticTensor b(node, "b", node.input_dtypes[1]);
    StaticTensor y(node, "y", node.output_dtypes.at(0));
    StaticBounds bounds = static_bounds(node, y);
    sum_.a = {nullptr, a.byte.flip, a.byte.zero, static_cast<float>(a.scale / y.scale)};
    sum_.b = {nullptr, b.byte.flip, b.byte.zero, static_cast<float>(b.scale / y.scale)};
    sum_.flip = y.byte.flip;
    sum_.zero = y.byte.zero;
    sum_.low = bounds.low;
    sum_.high = bounds.high;
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    if (inputs[0].shape != inputs[1].shape) {
      fail(ErrorKind::kShapeMismatch, "got shapes ", to_string(inputs[0].shape), " and ",
           to_string(inputs[1].shape), ", expected two of one shape");
    }
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    for_elements(run, [&](size_t r, int64_t begin, int64_t end) {
      ByteSum sum = sum_;
      sum.a.x = run.input(0).view(r).as<uint8_t>() + begin;
      sum.b.x = run.input(1).view(r).as<uint8_t>() + begin;
      sum.y = run.output(0).view(r).as<uint8_t>() + begin;
      kernels_.add(sum, end - begin);
    });
  }

 private:
  const QuantizeKernels& kernels_;
  ByteSum sum_{};
};

// y = table[x]; bytes of int8 count as their bits do.
class QuantizedMap : public Op {
 public:
  explicit QuantizedMap(const NodeSpec& node) {
    require_inputs(node, 2);
    auto is_byte = [](DType dtype) { return dtype == DType::kU8 || dtype == DType::kI8; };
    if (!is_byte(node.input_dtypes[0]) || !is_byte(node.output_dtypes.at(0))) {
      unsupported_dtype(node, 0);
    }
    if (!node.is_constant(1) || node.constants[1].bytes() != 256) {
      node.unsupported("the table must be a constant of 256 bytes");
    }
    table_ = node.pack(256, [&](std::byte* to) {
      std::copy_n(static_cast<const std::byte*>(node.constants[1].data), 256, to);
    });
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    for_elements(run, [&](size_t r, int64_t begin, int64_t end) {
      const auto* x = run.input(0).view(r).as<uint8_t>();
      auto* y = run.output(0).view(r).as<uint8_t>();
      const auto* table = table_.as<uint8_t>();
      for (int64_t i = begin; i < end; ++i) y[i] = table[x[i]];
    });
  }
  bool consumes(size_t input) const override { return input == 1; }

 private:
  Packed table_;
};

std::unique_ptr<Op> make_add(const NodeSpec& node) {
  return std::make_unique<QuantizedAdd>(node);
}
std::unique_ptr<Op> make_map(const NodeSpec& node) {
  return std::make_unique<QuantizedMap>(node);
}

}  // namespace

void register_byte_ops(OpRegistry& registry) {
  registry.add("headrace.QuantizedAdd", make_add);
  registry.add("headrace.QuantizedMap", make_map);
}

}  // namespace headrace
