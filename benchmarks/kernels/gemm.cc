// headrace_bench_gemm: the packed product's speed on one core and on two, and the peak that plain
// multiply-adds reach on one in the same run; as JSON, speeds in G operations/s.
//
// Usage: headrace_bench_gemm [fp32|bf16|int8 [isa]]
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "ops/linear/gemm.h"
#include "peak.h"
#include "runtime/plan.h"

namespace headrace {
namespace {

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Least time of `repeats` calls: other processes only ever add time.
template <class F>
double best_seconds(int repeats, F f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    double start = wall_seconds();
    f();
    best = std::min(best, wall_seconds() - start);
  }
  return best;
}

struct Case {
  int64_t m, k, n;
};

Program linear_program(Isa isa, const std::string& precision, const Case& c,
                       const std::vector<float>& weights) {
  ProgramBuilder builder(isa);
  ValueId x = builder.add_input({.name = "x", .dtype = DType::kF32, .dims = {{}, {}}});
  ValueId w = builder.add_constant("w", {DType::kF32, {c.k, c.n}, weights.data()}, nullptr);
  NodeSpec node;
  node.op = "headrace.Linear";
  node.attributes["precision"] = precision;
  node.output_dtypes = {DType::kF32};
  ValueId y = builder.add_op(std::move(node), {x, w}, {"y"})[0];
  builder.add_output({.name = "y", .dtype = DType::kF32, .dims = {{}, {}}}, y);
  return builder.finish();
}

double gemm_gflops(Isa isa, const std::string& precision, const Case& c, int threads) {
  std::vector<float> weights(static_cast<size_t>(c.k * c.n), 0.5f);
  std::vector<float> x(static_cast<size_t>(c.m * c.k), 0.25f);
  Plan plan(linear_program(isa, precision, c, weights), threads);
  ConstTensorView input{DType::kF32, {c.m, c.k}, x.data()};
  RequestInputs request(&input, 1);
  double work = 2.0 * static_cast<double>(c.m * c.k * c.n);
  int repeats = static_cast<int>(std::min(2000.0, 2e10 / work)) + 3;
  double seconds = best_seconds(repeats, [&] { plan.run({&request, 1}); });
  return work / seconds * 1e-9;
}

// The peak of the instructions a precision runs on: where there are none, those of fp32.
double peak_gflops(Isa isa, const std::string& precision) {
  double own = precision == "bf16"   ? peak::bf16_gflops(isa)
               : precision == "int8" ? peak::int8_gops(isa)
                                     : 0;
  return own > 0 ? own : peak::fp32_gflops(isa);
}

void bench(Isa isa, const std::string& precision, const char*& separator) {
  const Case weights[] = {{0, 384, 1152}, {0, 384, 384},   {0, 384, 1536},
                          {0, 1536, 384}, {0, 1024, 1024}, {0, 4096, 4096}};
  for (Case c : weights) {
    for (int64_t m : {1, 2, 4, 8, 16, 28, 128, 892, 1024}) {
      if (c.k * c.n * m > int64_t{6} << 30) continue;
      c.m = m;
      double peak = peak_gflops(isa, precision);
      double one = gemm_gflops(isa, precision, c, 1);
      double two = gemm_gflops(isa, precision, c, 2);
      std::printf("%s\n  {\"isa\": \"%s\", \"precision\": \"%s\", ", separator, name_of(isa).data(),
                  precision.c_str());
      std::printf("\"m\": %ld, \"k\": %ld, \"n\": %ld, ", static_cast<long>(c.m),
                  static_cast<long>(c.k), static_cast<long>(c.n));
      std::printf("\"peak\": %.1f, \"one\": %.1f, \"two\": %.1f}", peak, one, two);
      separator = ",";
    }
  }
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  using headrace::Isa;
  for (Isa isa : headrace::available_isas()) {
    if (argc > 2 ? headrace::name_of(isa) != argv[2] : isa != headrace::selected_isa()) continue;
    const char* separator = "[";
    for (const char* precision : {"fp32", "bf16", "int8"}) {
      if (argc < 2 || std::string(precision) == argv[1]) headrace::bench(isa, precision, separator);
    }
    std::printf("\n]\n");
    return 0;
  }
  std::fprintf(stderr, "got '%s', expected an ISA this CPU can run\n", argv[2]);
  return 2;
}
