// Batches of random float Requests, for tests that compare whole runs.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "runtime/plan.h"

namespace headrace::test {

inline std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

struct Batch {
  std::vector<std::vector<float>> data;
  std::vector<ConstTensorView> views;
  std::vector<RequestInputs> requests;
};

// One Request of one input for each shape.
inline Batch make_batch(const std::vector<Shape>& shapes) {
  Batch batch;
  uint32_t seed = 9;
  for (const Shape& shape : shapes) batch.data.push_back(random_floats(shape.elements(), ++seed));
  for (size_t i = 0; i < shapes.size(); ++i) {
    batch.views.push_back({DType::kF32, shapes[i], batch.data[i].data()});
  }
  for (const ConstTensorView& view : batch.views) batch.requests.emplace_back(&view, 1);
  return batch;
}

inline bool same_bits(const ConstTensorView& a, const ConstTensorView& b) {
  return a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

}  // namespace headrace::test
