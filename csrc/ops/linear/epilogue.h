// The way of a tile of products into C: bias, activation, residual, rounding.
#pragma once

#include "ops/linear/gemm.h"
#include "ops/simd/bf16.h"
#include "ops/simd/math.h"

namespace headrace::HEADRACE_ISA_NS {
namespace {

// A vector, or the `n` < kLanes elements of a tail.
template <class Act>
HR_INLINE Vf finish_vector(const Epilogue& e, Act act, Vf x, Vf bias, Vf residual) {
  if (e.bias != nullptr) x = x + bias;
  if (e.residual == nullptr) return act(x);
  return e.residual_first ? act(x + residual) : act(x) + residual;
}

HR_INLINE void put(float* c, Vf x) {
  store(c, x);
}
HR_INLINE void put(float* c, Vf x, int64_t n) {
  store(c, x, n);
}
HR_INLINE void put(uint16_t* c, Vf x) {
  store_bf16(c, x);
}
HR_INLINE void put(uint16_t* c, Vf x, int64_t n) {
  store_bf16(c, x, n);
}

HR_INLINE Vf get(const float* from) {
  return load(from);
}
HR_INLINE Vf get(const float* from, int64_t n) {
  return load(from, n);
}
HR_INLINE Vf get(const uint16_t* from) {
  return load_bf16(from);
}
HR_INLINE Vf get(const uint16_t* from, int64_t n) {
  return load_bf16(from, n);
}

// Takes a finished tile at (row, col) of C through the epilogue. C holds T, the residual R.
template <class T, class R, class Act>
void finish_rows(const GemmBlock& block, Act act, const float* out, int64_t out_stride, int64_t row,
                 int64_t rows, int64_t col, int64_t cols) {
  constexpr int64_t kLanes = Vf::kLanes;
  const Epilogue& e = block.epilogue;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = out + r * out_stride;
    T* c = static_cast<T*>(block.c) + (row + r) * block.c_stride + col;
    const R* residual = static_cast<const R*>(e.residual);
    if (residual != nullptr) residual += (row + r) * e.residual_stride + col;
    const float* bias = e.bias ? e.bias + col : nullptr;
    const Vf none = splat(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= cols; i += kLanes) {
      Vf b = bias ? load(bias + i) : none;
      Vf y = residual ? get(residual + i) : none;
      put(c + i, finish_vector(e, act, load(x + i), b, y));
    }
    if (i < cols) {
      int64_t n = cols - i;
      Vf b = bias ? load(bias + i, n) : none;
      Vf y = residual ? get(residual + i, n) : none;
      put(c + i, finish_vector(e, act, load(x + i, n), b, y), n);
    }
  }
}

enum class ResidualAt { kNowhere, kBefore, kAfter };  // the activation

// The same for a whole panel. What bias and residual there are is settled outside the loop; adding
// -0 changes nothing.
template <ResidualAt kResidual, class T, class R, class Act>
void finish_panel(const GemmBlock& block, Act act, const float* out, int64_t row, int64_t rows,
                  int64_t col) {
  constexpr int64_t kLanes = Vf::kLanes;
  const Epilogue& e = block.epilogue;
  const Vf bias0 = e.bias != nullptr ? load(e.bias + col) : splat(-0.0f);
  const Vf bias1 = e.bias != nullptr ? load(e.bias + col + kLanes) : splat(-0.0f);
  T* c = static_cast<T*>(block.c) + row * block.c_stride + col;
  const R* residual = static_cast<const R*>(e.residual);
  if constexpr (kResidual != ResidualAt::kNowhere) residual += row * e.residual_stride + col;
  for (int64_t r = 0; r < rows; ++r, out += 2 * kLanes, c += block.c_stride) {
    Vf x0 = load(out) + bias0;
    Vf x1 = load(out + kLanes) + bias1;
    if constexpr (kResidual == ResidualAt::kBefore) {
      x0 = x0 + get(residual);
      x1 = x1 + get(residual + kLanes);
    }
    x0 = act(x0);
    x1 = act(x1);
    if constexpr (kResidual == ResidualAt::kAfter) {
      x0 = x0 + get(residual);
      x1 = x1 + get(residual + kLanes);
    }
    if constexpr (kResidual != ResidualAt::kNowhere) residual += e.residual_stride;
    put(c, x0);
    put(c + kLanes, x1);
  }
}

template <class T, class R, class Act>
void finish_tile(const GemmBlock& block, Act act, const float* out, int64_t out_stride, int64_t row,
                 int64_t rows, int64_t col, int64_t cols) {
  const Epilogue& e = block.epilogue;
  constexpr int64_t kPanel = 2 * Vf::kLanes;
  if (cols != kPanel || out_stride != kPanel) {
    return finish_rows<T, R>(block, act, out, out_stride, row, rows, col, cols);
  }
  using enum ResidualAt;
  if (e.residual == nullptr) return finish_panel<kNowhere, T, R>(block, act, out, row, rows, col);
  if (e.residual_first) return finish_panel<kBefore, T, R>(block, act, out, row, rows, col);
  finish_panel<kAfter, T, R>(block, act, out, row, rows, col);
}

void finish(const GemmBlock& block, const float* out, int64_t out_stride, int64_t row, int64_t rows,
            int64_t col, int64_t cols) {
  auto with = [&](auto act) {
    auto finish_as = [&]<class T, class R>(T*, R*) {
      finish_tile<T, R>(block, act, out, out_stride, row, rows, col, cols);
    };
    auto* floats = static_cast<float*>(nullptr);
    auto* halves = static_cast<uint16_t*>(nullptr);
    const bool narrow = block.epilogue.residual != nullptr && block.epilogue.residual_bf16;
    if (block.c_bf16) return narrow ? finish_as(halves, halves) : finish_as(halves, floats);
    if (narrow) return finish_as(floats, halves);
    finish_as(floats, floats);
  };
  switch (block.epilogue.activation) {
    case Activation::kNone:
      return with([](Vf x) { return x; });
    case Activation::kRelu:
      // max(0, x) and not max(x, 0): the second operand comes out where x is NaN.
      return with([](Vf x) { return max(splat(0.0f), x); });
    case Activation::kClip: {
      Vf low = splat(block.epilogue.clip_min);
      Vf high = splat(block.epilogue.clip_max);
      return with([=](Vf x) { return min(high, max(low, x)); });
    }
    case Activation::kGeluErf:
      return with([](Vf x) { return gelu_erf(x); });
    case Activation::kGeluTanh:
      return with([](Vf x) { return gelu_tanh(x); });
    case Activation::kSigmoid:
      return with([](Vf x) { return sigmoid(x); });
    case Activation::kTanh:
      return with([](Vf x) { return tanh(x); });
    case Activation::kSilu:
      return with([](Vf x) { return silu(x); });
  }
}

void finish_products(const GemmBlock& block, const float* products, int64_t stride) {
  finish(block, products, stride, 0, block.rows, 0, block.cols);
}

}  // namespace
}  // namespace headrace::HEADRACE_ISA_NS
