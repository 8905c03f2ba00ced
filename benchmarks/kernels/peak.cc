// headrace_bench_peak: the machine's limits as one JSON object, for rooflines.
//
// Usage: headrace_bench_peak [threads]
//
// Operations are counted on one core and on `threads` at once; bandwidth is that of summing a
// buffer much larger than the last cache (read) and of copying one (bytes read plus bytes written).
#include "peak.h"

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace headrace {
namespace {

constexpr size_t kBytes = size_t{256} << 20;  // of each of the two buffers, over all threads

// measure(thread) on every thread at the same time; the rates that come back are added up.
double total(int threads, const std::function<double(int)>& measure) {
  std::vector<double> rates(static_cast<size_t>(threads));
  std::barrier ready(threads);
  {
    std::vector<std::jthread> running;
    for (int t = 0; t < threads; ++t) {
      running.emplace_back([&, t] {
        ready.arrive_and_wait();
        rates[static_cast<size_t>(t)] = measure(t);
      });
    }
  }
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

// Four chains of vectors, or the adds would wait for each other instead of for memory.
double sum_of(const std::vector<double>& x) {
  typedef double Vector __attribute__((vector_size(16)));
  const auto* v = reinterpret_cast<const Vector*>(x.data());
  Vector acc[4] = {};
  for (size_t i = 0; i + 4 <= x.size() / 2; i += 4) {
    for (size_t j = 0; j < 4; ++j) acc[j] += v[i + j];
  }
  Vector sum = acc[0] + acc[1] + acc[2] + acc[3];
  return sum[0] + sum[1];
}

void report(int threads, bool last) {
  Isa isa = selected_isa();
  double fp32 = total(threads, [&](int) { return peak::fp32_gflops(isa); });
  double bf16 = total(threads, [&](int) { return peak::bf16_gflops(isa); });
  double int8 = total(threads, [&](int) { return peak::int8_gops(isa); });
  size_t each = kBytes / static_cast<size_t>(threads);
  std::vector<std::vector<double>> from(static_cast<size_t>(threads)), to(from.size());
  for (auto& x : from) x.assign(each / sizeof(double), 1.0);
  for (auto& x : to) x.assign(each / sizeof(double), 2.0);
  double read = total(threads, [&](int t) {
    volatile double sink = 0;
    double s = peak::best_seconds([&] { sink = sink + sum_of(from[static_cast<size_t>(t)]); });
    return static_cast<double>(each) / s * 1e-9;
  });
  double copy = total(threads, [&](int t) {
    auto i = static_cast<size_t>(t);
    double s = peak::best_seconds([&] { std::memcpy(to[i].data(), from[i].data(), each); });
    return 2 * static_cast<double>(each) / s * 1e-9;
  });
  std::printf("  \"%d\": {\"fp32_gflops\": %.1f, \"bf16_gflops\": %.1f, \"int8_gops\": %.1f, ",
              threads, fp32, bf16, int8);
  std::printf("\"read_gbs\": %.1f, \"copy_gbs\": %.1f}%s\n", read, copy, last ? "" : ",");
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1) {
    std::fprintf(stderr, "got threads '%s', expected a number from 1\n", argv[1]);
    return 2;
  }
  std::printf("{\"isa\": \"%s\", \"threads\": {\n",
              std::string(headrace::name_of(headrace::selected_isa())).c_str());
  if (threads > 1) headrace::report(1, false);
  headrace::report(threads, true);
  std::printf("}}\n");
}
