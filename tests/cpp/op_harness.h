// Runs one op over a Batch without a Program, for tests of ops.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/op.h"

namespace headrace::test {

// A tensor that owns its elements. Strings are views of whatever the test keeps alive.
struct Tensor {
  DType dtype = DType::kNone;
  Shape shape;
  std::vector<std::byte> bytes;

  template <class T>
  static Tensor of(Shape shape, const std::vector<T>& values) {
    Tensor tensor{kDTypeOf<T>, shape, std::vector<std::byte>(values.size() * sizeof(T))};
    if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
  }
  ConstTensorView view() const { return {dtype, shape, bytes.data()}; }
  template <class T>
  std::vector<T> values() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

using Tensors = std::vector<Tensor>;

// Runs Requests together, given as requests[request][input]; returns [request][output].
inline std::vector<Tensors> run_op(const Op& op, const std::vector<DType>& output_dtypes,
                                   const std::vector<Tensors>& requests, int threads = 1) {
  size_t n = requests.size();
  size_t n_inputs = n > 0 ? requests[0].size() : 0;
  size_t n_outputs = output_dtypes.size();
  std::vector<std::vector<Shape>> shapes(n_inputs + n_outputs, std::vector<Shape>(n));
  std::vector<std::vector<int64_t>> offsets(n_inputs + n_outputs, std::vector<int64_t>(n + 1, 0));
  for (size_t r = 0; r < n; ++r) {
    std::vector<ConstTensorView> views;
    for (const Tensor& tensor : requests[r]) views.push_back(tensor.view());
    std::vector<Shape> inferred(n_outputs);
    op.infer(views, inferred);
    for (size_t i = 0; i < n_inputs; ++i) shapes[i][r] = requests[r][i].shape;
    for (size_t o = 0; o < n_outputs; ++o) shapes[n_inputs + o][r] = inferred[o];
  }
  std::vector<std::vector<std::byte>> memory(n_inputs + n_outputs);
  std::vector<Segments> segments(n_inputs + n_outputs);
  for (size_t v = 0; v < segments.size(); ++v) {
    bool is_input = v < n_inputs;
    DType dtype = is_input ? requests[0][v].dtype : output_dtypes[v - n_inputs];
    for (size_t r = 0; r < n; ++r) offsets[v][r + 1] = offsets[v][r] + shapes[v][r].elements();
    memory[v].resize(static_cast<size_t>(offsets[v][n] * size_of(dtype)));
    segments[v] = {.dtype = dtype,
                   .data = memory[v].data(),
                   .shapes = shapes[v],
                   .offsets = offsets[v],
                   .shared = false};
    for (size_t r = 0; is_input && r < n; ++r) {
      const std::vector<std::byte>& bytes = requests[r][v].bytes;
      if (bytes.empty()) continue;
      std::memcpy(memory[v].data() + offsets[v][r] * size_of(dtype), bytes.data(), bytes.size());
    }
  }
  ThreadPool pool(threads);
  Arena arena;
  OpRun run(n, {segments.data(), n_inputs}, {segments.data() + n_inputs, n_outputs}, pool, threads,
            arena, n_outputs > 0 && is_streamed(segments[n_inputs]));
  op.run(run);
  run.release_scratch();
  std::vector<Tensors> results(n);
  for (size_t r = 0; r < n; ++r) {
    for (size_t o = 0; o < n_outputs; ++o) {
      const Segments& segment = segments[n_inputs + o];
      const std::byte* begin = segment.data + segment.offsets[r] * size_of(segment.dtype);
      const std::byte* end = segment.data + segment.offsets[r + 1] * size_of(segment.dtype);
      results[r].push_back({segment.dtype, segment.shapes[r], {begin, end}});
    }
  }
  return results;
}

inline Tensors run_one(const Op& op, const std::vector<DType>& output_dtypes, const Tensors& inputs,
                       int threads = 1) {
  return run_op(op, output_dtypes, {inputs}, threads)[0];
}

}  // namespace headrace::test
