// What several rooms' kernels compute: activations, and 16-bit floats by their names here.
#pragma once

#include "cuda/kernel.h"

namespace headrace::cuda {

// The activations of fused ops, as ops/linear/gemm.h names them.
enum class Act : int { kNone, kRelu, kGeluErf, kGeluTanh, kSigmoid, kTanh, kSilu, kClip };

__device__ inline float sigmoid(float x) {
  // e is at most 1: nothing overflows.
  float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}
__device__ inline float gelu_erf(float x) {
  return 0.5f * x * erfcf(x * -0.70710678f);
}
__device__ inline float gelu_tanh(float x) {
  return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x));
}

__device__ inline float activate(Act act, float x, float low, float high) {
  switch (act) {
    case Act::kNone:
      return x;
    case Act::kRelu:
      return x < 0 ? 0.0f : x;  // NaN stays
    case Act::kGeluErf:
      return gelu_erf(x);
    case Act::kGeluTanh:
      return gelu_tanh(x);
    case Act::kSigmoid:
      return sigmoid(x);
    case Act::kTanh:
      return tanhf(x);
    case Act::kSilu:
      return x * sigmoid(x);
    case Act::kClip: {
      float bounded = x < low ? low : x;
      return bounded > high ? high : bounded;
    }
  }
  return x;
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

}  // namespace headrace::cuda
