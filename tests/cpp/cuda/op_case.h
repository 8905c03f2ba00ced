// One node as a Program, run by the CPU's kernel and by the CUDA kernel on the host.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "cuda/cuda_on_host.h"
#include "cuda/plan.h"
#include "op_harness.h"
#include "runtime/plan.h"

namespace headrace::cuda::test {

using headrace::test::Tensor;
using headrace::test::Tensors;

// An input of the node: absent, a constant, or one tensor per Request.
struct Arg {
  Tensors constant;
  Tensors requests;
};
inline Arg absent() {
  return {};
}
inline Arg constant(Tensor tensor) {
  return {{std::move(tensor)}, {}};
}
inline Arg per_request(Tensors tensors) {
  return {{}, std::move(tensors)};
}

struct OpCase {
  NodeSpec node;  // op, opset, attributes, output_dtypes
  std::vector<Arg> inputs;
  double tolerance = 1e-5;

  size_t requests() const {
    size_t count = 1;
    for (const Arg& arg : inputs) count = std::max(count, arg.requests.size());
    return count;
  }
};

inline TensorSpec spec_of(const std::string& name, const Tensor& like) {
  TensorSpec spec{name, like.dtype, {}};
  for (int i = 0; i < like.shape.rank(); ++i) {
    spec.dims.push_back({-1, name + std::to_string(i)});
  }
  return spec;
}

inline Program program_of(const OpCase& c, bool keep_constants) {
  ProgramBuilder builder(Isa::kReference, keep_constants);
  std::vector<ValueId> ids;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const Arg& arg = c.inputs[i];
    std::string name = "in" + std::to_string(i);
    if (!arg.constant.empty()) {
      ids.push_back(builder.add_constant(name, arg.constant[0].view(), nullptr));
    } else if (!arg.requests.empty()) {
      ids.push_back(builder.add_input(spec_of(name, arg.requests[0])));
    } else {
      ids.push_back(kAbsent);
    }
  }
  std::vector<std::string> names;
  for (size_t o = 0; o < c.node.output_dtypes.size(); ++o) {
    names.push_back("out" + std::to_string(o));
  }
  std::vector<ValueId> outputs = builder.add_op(c.node, ids, names);
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (outputs[o] == kAbsent) continue;
    builder.add_output({names[o], c.node.output_dtypes[o], {}}, outputs[o]);
  }
  return builder.finish();
}

// The inputs of Requests, in the Program's order.
inline std::vector<std::vector<ConstTensorView>> views_of(const OpCase& c) {
  std::vector<std::vector<ConstTensorView>> views(c.requests());
  for (size_t r = 0; r < views.size(); ++r) {
    for (const Arg& arg : c.inputs) {
      if (!arg.requests.empty()) views[r].push_back(arg.requests[r].view());
    }
  }
  return views;
}

// [request][output], as owned tensors.
template <class Run>
std::vector<Tensors> collect(const Run& run, size_t requests, size_t outputs) {
  std::vector<Tensors> results(requests);
  for (size_t r = 0; r < requests; ++r) {
    for (size_t o = 0; o < outputs; ++o) {
      ConstTensorView view = run.output(r, o);
      const auto* data = static_cast<const std::byte*>(view.data);
      results[r].push_back({view.dtype, view.shape, {data, data + view.bytes()}});
    }
  }
  return results;
}

template <class AnyPlan>
std::vector<Tensors> run_plan(AnyPlan& plan,
                              const std::vector<std::vector<ConstTensorView>>& views) {
  std::vector<RequestInputs> requests(views.begin(), views.end());
  return collect(plan.run(requests), requests.size(), plan.program().outputs.size());
}

inline double value_at(const Tensor& tensor, size_t i) {
  switch (tensor.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(tensor.bytes.data())[i];
    case DType::kF64:
      return reinterpret_cast<const double*>(tensor.bytes.data())[i];
    case DType::kBF16:
      return reinterpret_cast<const BFloat16*>(tensor.bytes.data())[i];
    case DType::kI32:
      return reinterpret_cast<const int32_t*>(tensor.bytes.data())[i];
    case DType::kI64:
      return static_cast<double>(reinterpret_cast<const int64_t*>(tensor.bytes.data())[i]);
    default:
      return static_cast<double>(tensor.bytes[i]);
  }
}

inline void check_close(const std::string& where, const Tensor& got, const Tensor& expected,
                        double tolerance) {
  if (got.dtype != expected.dtype || got.shape != expected.shape) {
    headrace::test::report(__FILE__, __LINE__, where, ": got ", name_of(got.dtype), " ",
                           to_string(got.shape), ", expected ", name_of(expected.dtype), " ",
                           to_string(expected.shape));
    return;
  }
  for (size_t i = 0; i < static_cast<size_t>(got.shape.elements()); ++i) {
    double x = value_at(got, i), y = value_at(expected, i);
    bool close = x == y || (std::isnan(x) && std::isnan(y)) ||
                 std::abs(x - y) <= tolerance * std::max(1.0, std::abs(y));
    if (close) continue;
    headrace::test::report(__FILE__, __LINE__, where, ": element ", i, " of ", to_string(got.shape),
                           ": got ", x, ", expected ", y);
    return;
  }
}

// Holds a CUDA kernel to three promises: the CPU kernel's results within the tolerance; the same
// bits in every order of lanes; the same bits for a Request alone as in its Batch. `by_library` of
// its products must be cuBLASLt's.
inline void check_on_host(const OpCase& c, const ProductSettings& products = {},
                          size_t by_library = 0) {
  std::vector<std::vector<ConstTensorView>> views = views_of(c);
  Plan cpu(program_of(c, false), 1);
  std::vector<Tensors> expected = run_plan(cpu, views);
  DevicePlan plan(program_of(c, true), open_device(0), products);
  HR_CHECK_EQ(plan.device_steps(), size_t{1});
  HR_CHECK_EQ(plan.products().by_library(), by_library);
  on_host::set_seed(1);
  std::vector<Tensors> got = run_plan(plan, views);
  for (size_t r = 0; r < views.size(); ++r) {
    for (size_t o = 0; o < got[r].size(); ++o) {
      std::string where = str(c.node.op, ", Request ", r, ", output ", o);
      check_close(where, got[r][o], expected[r][o], c.tolerance);
    }
  }
  on_host::set_seed(2);
  std::vector<Tensors> shuffled = run_plan(plan, views);
  for (size_t r = 0; r < views.size(); ++r) {
    Tensors alone = run_plan(plan, {views[r]})[0];
    for (size_t o = 0; o < alone.size(); ++o) {
      if (shuffled[r][o].bytes != got[r][o].bytes) {
        headrace::test::report(__FILE__, __LINE__, c.node.op, ": bits depend on the lanes' order");
      }
      if (alone[o].bytes != got[r][o].bytes) {
        headrace::test::report(__FILE__, __LINE__, c.node.op, ": bits depend on the Batch");
      }
    }
  }
}

inline Tensor random(Shape shape, uint32_t seed, float scale = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(shape.elements()));
  for (float& value : values) value = normal(rng);
  return Tensor::of(shape, values);
}
inline Tensors randoms(const std::vector<Shape>& shapes, uint32_t seed = 7) {
  Tensors tensors;
  for (const Shape& shape : shapes) tensors.push_back(random(shape, seed++));
  return tensors;
}
inline Tensor ints(Shape shape, const std::vector<int64_t>& values) {
  return Tensor::of(shape, values);
}

inline NodeSpec node_of(std::string op, int64_t opset, Attributes attributes = {},
                        std::vector<DType> outputs = {DType::kF32}) {
  NodeSpec node;
  node.op = std::move(op);
  node.opset = opset;
  node.attributes = std::move(attributes);
  node.output_dtypes = std::move(outputs);
  return node;
}

}  // namespace headrace::cuda::test
