// LayerNormalization, RMSNormalization and headrace.EmbeddingNorm: a warp per row, the rows of all
// Requests as one block. A lane sums every 32nd element, and lanes are joined in one order.
#include "core/strided.h"
#include "cuda/math.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"

namespace headrace::cuda {
namespace {

constexpr unsigned kNormsPerBlock = 4;

// Normalises one row that element(i) gives; every lane of a warp comes here.
template <class Element>
__device__ void norm_row(Element element, float* y, int64_t n, const float* scale,
                         const float* bias, float epsilon, bool centered, float* mean_out,
                         float* inv_out) {
  int64_t lane = threadIdx.x % kWarp;
  float mean = 0;
  if (centered) {
    for (int64_t i = lane; i < n; i += kWarp) mean += element(i);
    mean = warp_sum(mean) / static_cast<float>(n);
  }
  float squares = 0;
  for (int64_t i = lane; i < n; i += kWarp) {
    float d = element(i) - mean;
    squares = fmaf(d, d, squares);
  }
  float inv = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n) + epsilon);
  for (int64_t i = lane; i < n; i += kWarp) {
    float value = (element(i) - mean) * inv * scale[i];
    y[i] = bias == nullptr ? value : value + bias[i];
  }
  if (lane == 0 && mean_out != nullptr) *mean_out = mean;
  if (lane == 0 && inv_out != nullptr) *inv_out = inv;
}

__global__ void row_norm_kernel(const float* x, float* y, int64_t rows, int64_t n,
                                const float* scale, const float* bias, float epsilon, bool centered,
                                float* means, float* invs) {
  int64_t row = int64_t{blockIdx.x} * kNormsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;  // a whole warp
  const float* from = x + row * n;
  norm_row([&](int64_t i) { return from[i]; }, y + row * n, n, scale, bias, epsilon, centered,
           means == nullptr ? nullptr : means + row, invs == nullptr ? nullptr : invs + row);
}

// A term of an embedding: rows of a table that ids name, or rows in their order.
struct Term {
  const float* rows;
  const void* ids;  // null if the rows are taken in order
  bool ids_32;
  int64_t length;  // of the table
  int64_t period;  // rows of the output after which the term's begin again
};
constexpr int kMaxTerms = 3;

struct EmbeddingLoop {
  int64_t rows;
  float* y;
  Term terms[kMaxTerms];
};

__device__ const float* row_of(const Term& term, int64_t row, int64_t width) {
  int64_t i = row % term.period;
  if (term.ids != nullptr) {
    i = term.ids_32 ? static_cast<const int32_t*>(term.ids)[i]
                    : static_cast<const int64_t*>(term.ids)[i];
    if (i < 0) i += term.length;
  }
  return term.rows + i * width;
}

__global__ void embedding_norm_kernel(const EmbeddingLoop* loops, int terms, int64_t n,
                                      const float* scale, const float* bias, float epsilon) {
  const EmbeddingLoop& loop = loops[blockIdx.y];
  int64_t row = int64_t{blockIdx.x} * kNormsPerBlock + threadIdx.x / kWarp;
  if (row >= loop.rows) return;
  const float* first = row_of(loop.terms[0], row, n);
  const float* second = terms > 1 ? row_of(loop.terms[1], row, n) : nullptr;
  const float* third = terms > 2 ? row_of(loop.terms[2], row, n) : nullptr;
  auto sum = [&](int64_t i) {
    float value = first[i];
    if (second != nullptr) value += second[i];
    return third == nullptr ? value : value + third[i];
  };
  norm_row(sum, loop.y + row * n, n, scale, bias, epsilon, true, nullptr, nullptr);
}

class RowNormOp final : public CudaOp {
 public:
  RowNormOp(const NodeSpec& spec, bool centered)
      : centered_(centered), epsilon_(spec.float_or("epsilon", 1e-5f)) {}

  void run(CudaRun& run) const override {
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    int64_t n = run.input(1).elements();
    int64_t rows = y.elements() / n;
    launch(run.stream(), {blocks_for(rows, kNormsPerBlock), kNormsPerBlock * kWarp},
           row_norm_kernel, run.in<float>(0), run.out<float>(0), rows, n, run.in<float>(1),
           run.in<float>(2), epsilon_, centered_, run.out<float>(1), run.out<float>(2));
  }

 private:
  bool centered_;
  float epsilon_;
};

class EmbeddingNormOp final : public CudaOp {
 public:
  EmbeddingNormOp(const NodeSpec& spec, int terms)
      : epsilon_(spec.float_or("epsilon", 1e-5f)), terms_(terms) {}

  // The shape rule checks ids, so that none leads out of its table.
  bool on_host(size_t input) const override { return input > 2 && input % 2 == 1; }

  void run(CudaRun& run) const override {
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    int64_t n = run.input(0).elements();
    auto loops = run.table<EmbeddingLoop>(run.requests());
    int64_t longest = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      EmbeddingLoop& loop = loops.rows[r];
      loop = {};
      loop.rows = y.shape(r).elements() / n;
      loop.y = run.out<float>(0, r);
      for (int t = 0; t < terms_; ++t) loop.terms[t] = term(run, r, t, n);
      longest = std::max(longest, loop.rows);
    }
    run.send(loops);
    launch_rows(run.stream(), {blocks_for(longest, kNormsPerBlock), kNormsPerBlock * kWarp},
                embedding_norm_kernel, loops, terms_, n, run.in<float>(0), run.in<float>(1),
                epsilon_);
  }

 private:
  static Term term(const CudaRun& run, size_t r, int t, int64_t n) {
    auto rows = static_cast<size_t>(2 + 2 * t);
    size_t ids = rows + 1;
    Term term{run.in<float>(rows, r), nullptr, false, 0, 0};
    term.length = run.input(rows).shape(r).elements() / n;
    term.period = term.length;
    if (run.has_input(ids)) {
      term.ids = run.in<std::byte>(ids, r);
      term.ids_32 = run.input(ids).dtype == DType::kI32;
      term.period = run.input(ids).shape(r).elements();
    }
    return term;
  }

  float epsilon_;
  int terms_;
};

std::unique_ptr<CudaOp> make_row_norm(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  require_dtype(spec, DType::kF32);
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && spec.is_constant(i) != (i > 0)) {
      spec.unsupported("device cuda: expected a result to normalise, and scale and bias constant");
    }
  }
  return std::make_unique<RowNormOp>(spec, spec.op == "LayerNormalization");
}

std::unique_ptr<CudaOp> make_embedding_norm(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  int terms = 0;
  while (terms < kMaxTerms && spec.has_input(static_cast<size_t>(2 + 2 * terms))) ++terms;
  if (!spec.is_constant(0) || (spec.has_input(1) && !spec.is_constant(1))) {
    spec.unsupported("device cuda: scale and bias that are not constant");
  }
  return std::make_unique<EmbeddingNormOp>(spec, terms);
}

}  // namespace

void register_norm_cuda(CudaRegistry& registry) {
  registry.add("LayerNormalization", make_row_norm);
  registry.add("RMSNormalization", make_row_norm);
  registry.add("headrace.EmbeddingNorm", make_embedding_norm);
}

}  // namespace headrace::cuda
