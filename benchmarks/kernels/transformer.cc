// headrace_bench_transformer: attention as a share of the multiply-add peak, and norms, softmaxes
// and activations as a share of the speed of a plain copy, both reached in the same run by the same
// thread.
//
// Usage: headrace_bench_transformer [isa]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>

#include "ops/activation/activation.h"
#include "ops/attention/attention.h"
#include "ops/norm/norm.h"
#include "ops/softmax/softmax.h"
#include "peak.h"

namespace headrace {
namespace {

// This thread's time on a core, so that other processes only disturb what they share with it.
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class F>
double best_seconds(F f) {
  double best = 1e30;
  double end = thread_seconds() + 0.2;
  while (thread_seconds() < end) {
    double start = thread_seconds();
    f();
    best = std::min(best, thread_seconds() - start);
  }
  return best;
}

std::vector<float> numbers(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1000) * 0.004f - 2.0f;
  return x;
}

void bench_attention(Isa isa, Precision precision, int64_t tokens, int64_t heads, int64_t dim) {
  const AttentionKernels& kernels = attention_kernels_for(isa, precision);
  const bool bf16 = precision == Precision::kBf16;
  const int64_t size = bf16 ? 2 : 4;
  int64_t width = heads * dim;
  std::vector<float> floats = numbers(tokens * 3 * width);
  std::vector<std::byte> qkv(floats.size() * static_cast<size_t>(size));
  // A bfloat16 is the upper half of a float.
  for (size_t i = 0; i < floats.size(); ++i) {
    const auto* from = reinterpret_cast<const std::byte*>(&floats[i]) + (4 - size);
    std::memcpy(qkv.data() + i * static_cast<size_t>(size), from, static_cast<size_t>(size));
  }
  std::vector<float> out(static_cast<size_t>(tokens * width));
  std::vector<float> scratch(static_cast<size_t>(kernels.scratch_floats(dim, dim)) + 16);
  // A clean cache line's start, as the arena gives it.
  auto misaligned = reinterpret_cast<uintptr_t>(scratch.data()) % 64 / sizeof(float);
  float* aligned = scratch.data() + (16 - misaligned) % 16;
  auto rows = [&](int64_t first) {
    return AttentionOperand{qkv.data() + first * size, 3 * width, bf16};
  };
  double seconds = best_seconds([&] {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t query = 0; query < tokens; query += kernels.query_block) {
        int64_t base = head * dim;
        kernels.attend(
            {.q = rows(base + query * 3 * width),
             .k = rows(base + width),
             .v = rows(base + 2 * width),
             .o = reinterpret_cast<std::byte*>(out.data()) + (query * width + head * dim) * size,
             .o_stride = width,
             .o_bf16 = bf16,
             .queries = std::min(kernels.query_block, tokens - query),
             .keys = tokens,
             .head_dim = dim,
             .value_dim = dim,
             .scale = 1.0f / std::sqrt(static_cast<float>(dim)),
             .scratch = aligned});
      }
    }
  });
  double flops = 4.0 * static_cast<double>(tokens * tokens * width) / seconds;
  double peak = bf16 ? peak::bf16_gflops(isa) : 0;
  if (peak == 0) peak = peak::fp32_gflops(isa);
  std::printf(
      "attention %s %3ld tokens, %ld heads x %ld   %9.2f us  %6.1f GFLOP/s  %3.0f%% of peak\n",
      bf16 ? "bf16" : "fp32", tokens, heads, dim, seconds * 1e6, flops * 1e-9,
      100e-9 * flops / peak);
}

// `run(x, y)` over `elements` floats, against memcpy of as many.
template <class F>
void bench_streaming(const char* name, int64_t elements, F run) {
  std::vector<float> x = numbers(elements);
  std::vector<float> y(x.size());
  double seconds = best_seconds([&] { run(x.data(), y.data()); });
  double copy = best_seconds([&] { std::memcpy(y.data(), x.data(), x.size() * sizeof(float)); });
  std::printf("%-28s %9.2f us  %5.2f ns/16 elements  %3.0f%% of a copy's speed\n", name,
              seconds * 1e6, seconds * 16e9 / static_cast<double>(elements), 100 * copy / seconds);
}

void bench(Isa isa) {
  std::printf("%s\n", std::string(name_of(isa)).c_str());
  for (Precision precision : {Precision::kF32, Precision::kBf16}) {
    for (int64_t tokens : {16, 28, 128, 512}) bench_attention(isa, precision, tokens, 12, 32);
    bench_attention(isa, precision, 128, 12, 64);
  }
  const NormKernels& norm = HEADRACE_KERNELS(isa, norm_kernels);
  const SoftmaxKernels& softmax = HEADRACE_KERNELS(isa, softmax_kernels);
  const ActivationKernels& activation = HEADRACE_KERNELS(isa, activation_kernels);
  std::vector<float> scale = numbers(384);
  for (int64_t rows : {16, 128, 4096}) {
    int64_t n = rows * 384;
    std::printf("%ld x 384:\n", rows);
    bench_streaming("layer_norm", n, [&](const float* x, float* y) {
      norm.layer_norm(x, y, rows, 384, scale.data(), scale.data(), 1e-5f, nullptr, nullptr);
    });
    bench_streaming("softmax", n,
                    [&](const float* x, float* y) { softmax.softmax_rows(x, y, rows, 384); });
    bench_streaming("softmax of columns", n, [&](const float* x, float* y) {
      softmax.softmax_columns(x, y, rows, 384, 384);
    });
    bench_streaming("gelu_erf", n,
                    [&](const float* x, float* y) { activation.gelu_erf(x, y, n, 0, 0); });
    bench_streaming("gelu_tanh", n,
                    [&](const float* x, float* y) { activation.gelu_tanh(x, y, n, 0, 0); });
    bench_streaming("exp", n, [&](const float* x, float* y) { activation.exp(x, y, n, 0, 0); });
    bench_streaming("tanh", n, [&](const float* x, float* y) { activation.tanh(x, y, n, 0, 0); });
    bench_streaming("relu", n, [&](const float* x, float* y) { activation.relu(x, y, n, 0, 0); });
  }
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  for (headrace::Isa isa : headrace::available_isas()) {
    if (argc < 2 || headrace::name_of(isa) == argv[1]) headrace::bench(isa);
  }
}
