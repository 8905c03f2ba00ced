// headrace_bench_weights: products of few rows whose weights come from memory, as a run of a large
// model reads them, in small and in huge pages, beside the same with weights in the cache. One
// core, G operations/s.
//
// Usage: headrace_bench_weights [fp32|bf16 [isa]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/memory.h"
#include "ops/linear/gemm.h"

namespace headrace {
namespace {

// Copies of the weights that no cache holds.
constexpr int64_t kAllBytes = int64_t{128} << 20;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Case {
  int64_t rows, k, cols;
};

class Products {
 public:
  Products(const GemmKernels& kernels, const Case& c)
      : kernels_(kernels),
        case_(c),
        words_(c.cols / kernels.panel_cols * kernels.panel_words(c.k)),
        copies_(std::max<int64_t>(kAllBytes / (words_ * 4), 2)),
        rows_(make_aligned_words(kernels.packed_rows_words(c.rows, c.k))),
        y_(static_cast<size_t>(c.rows * c.cols)) {
    std::vector<float> x(static_cast<size_t>(c.rows * c.k), 0.25f);
    kernels.pack_rows({x.data(), c.k}, c.rows, c.k, rows_.get());
  }

  int64_t words() const { return words_ * copies_; }

  // Of the median product over different weights, each one's least time of some rounds:
  // other processes only ever add time.
  double speed(const Word* weights, bool from_memory) {
    std::vector<double> least(static_cast<size_t>(from_memory ? copies_ : 1), 1e30);
    for (int round = 0; round < 8; ++round) {
      for (size_t i = 0; i < least.size(); ++i) {
        auto start = std::chrono::steady_clock::now();
        kernels_.multiply({.a = rows_.get(),
                           .b = weights + static_cast<int64_t>(i) * words_,
                           .rows = case_.rows,
                           .k = kernels_.words(case_.k),
                           .cols = case_.cols,
                           .c = y_.data(),
                           .c_stride = case_.cols,
                           .epilogue = {}});
        least[i] = std::min(least[i], seconds_since(start));
      }
    }
    std::ranges::sort(least);
    double work = 2.0 * static_cast<double>(case_.rows * case_.k * case_.cols);
    return work / least[least.size() / 2] * 1e-9;
  }

 private:
  const GemmKernels& kernels_;
  Case case_;
  int64_t words_;
  int64_t copies_;
  AlignedWords rows_;
  std::vector<float> y_;
};

void bench(const GemmKernels& kernels) {
  // 7 x 7 pixels of ResNet-50, and 16 tokens of a transformer 768 wide; half of the columns, as one
  // of two threads has them.
  for (const Case& c : {Case{49, 4608, 256}, Case{49, 2048, 256}, Case{49, 512, 1024},
                        Case{16, 768, 1536}, Case{16, 3072, 384}}) {
    Products products(kernels, c);
    int64_t bytes = products.words() * static_cast<int64_t>(sizeof(Word));
    AlignedWords small = make_aligned_words(products.words());
    std::byte* huge = allocate_memory(bytes);
    std::memset(small.get(), 0, static_cast<size_t>(bytes));
    std::memset(huge, 0, static_cast<size_t>(bytes));
    std::printf("%ld rows, k %ld, %ld columns: cached %.0f, small pages %.0f, huge pages %.0f\n",
                static_cast<long>(c.rows), static_cast<long>(c.k), static_cast<long>(c.cols),
                products.speed(small.get(), false), products.speed(small.get(), true),
                products.speed(reinterpret_cast<const Word*>(huge), true));
    free_memory(huge, bytes);
  }
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  using namespace headrace;
  Precision precision =
      argc > 1 && std::string(argv[1]) == "bf16" ? Precision::kBf16 : Precision::kF32;
  for (Isa isa : available_isas()) {
    if (argc > 2 ? name_of(isa) != argv[2] : isa != selected_isa()) continue;
    bench(gemm_kernels_for(isa, precision));
    return 0;
  }
  std::fprintf(stderr, "got '%s', expected an ISA this CPU can run\n", argv[2]);
  return 2;
}
