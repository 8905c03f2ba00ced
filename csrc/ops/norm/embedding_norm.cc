// headrace.EmbeddingNorm: LayerNormalization of a sum of embeddings, in one pass over the rows.
//
// Inputs: scale, bias (may be absent), then up to three terms as pairs: a table [V, D] and the ids
// of its rows, or rows [..., D] as they are, without ids. The first has ids, whose shape is the
// output's but for D. The others repeat along leading dims: [S, D] and [1, S, D] serve any batch.
#include <array>

#include "ops/node_inputs.h"
#include "ops/norm/room.h"
#include "ops/rows.h"

namespace headrace {
namespace {

constexpr size_t kScale = 0;
constexpr size_t kBias = 1;
constexpr size_t kTerms = 2;
constexpr size_t kMaxTerms = 3;
// Rows that are added up before they are normalised: they stay in the L1 cache.
constexpr int64_t kBlock = 4;
// How far ahead a row of the first table is fetched: which comes next no prefetcher can guess.
constexpr int64_t kAhead = 4;

// Rows that a term gives, of which every one serves several of the output's.
struct Term {
  const float* rows = nullptr;
  ConstTensorView ids;  // absent if the rows are taken in order
  int64_t length = 0;   // of the table
  int64_t period = 1;   // rows of the output after which the term's begin again

  const float* at(int64_t row, int64_t width) const {
    int64_t i = row % period;
    return rows + (ids.present() ? from_front(int_at(ids, i), length) : i) * width;
  }
};

class EmbeddingNorm final : public Op {
 public:
  EmbeddingNorm(const NodeSpec& spec, size_t terms)
      : kernels_(HEADRACE_KERNELS(spec.isa, norm_kernels)),
        epsilon_(spec.float_or("epsilon", 1e-5f)),
        terms_(terms) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    int64_t width = inputs[kScale].elements();
    if (inputs[kBias].present()) check_elements("bias", inputs[kBias].shape, width);
    Shape y = inputs[ids_of(0)].shape;
    y.push_back(width);
    for (size_t t = 0; t < terms_; ++t) {
      const Shape& rows = inputs[rows_of(t)].shape;
      bool looks_up = inputs.size() > ids_of(t) && inputs[ids_of(t)].present();
      if (rows.rank() < 1 || rows[rows.rank() - 1] != width || (looks_up && rows.rank() != 2)) {
        fail(ErrorKind::kShapeMismatch, "term ", t, ": got ", looks_up ? "a table" : "rows",
             " of shape ", to_string(rows), ", expected ", looks_up ? "[V, " : "[..., ", width,
             "]");
      }
      if (looks_up) check_indices(inputs[ids_of(t)], rows[0]);
      check_repeats(t, leading(inputs, t), y);
    }
    outputs[0] = y;
  }

  void run(const OpRun& run) const override {
    const Segments& y = run.output(0);
    if (y.elements() == 0) return;
    int64_t width = run.input(kScale).view(0).elements();
    for_rows(
        run, min_rows_of(width), [&](size_t r) { return y.shape(r).elements() / width; },
        [&](size_t r, int64_t begin, int64_t end) { rows(run, r, width, begin, end); });
  }

 private:
  static size_t rows_of(size_t term) { return kTerms + 2 * term; }
  static size_t ids_of(size_t term) { return rows_of(term) + 1; }

  // The dims along which a term has rows.
  static Shape leading(InputViews inputs, size_t term) {
    if (inputs.size() > ids_of(term) && inputs[ids_of(term)].present()) {
      return inputs[ids_of(term)].shape;
    }
    Shape shape;
    const Shape& rows = inputs[rows_of(term)].shape;
    for (int i = 0; i + 1 < rows.rank(); ++i) shape.push_back(rows[i]);
    return shape;
  }

  // `shape` must be the last of y's dims but one, behind any number of ones.
  static void check_repeats(size_t term, const Shape& shape, const Shape& y) {
    int skipped = 0;
    while (skipped < shape.rank() && shape[skipped] == 1) ++skipped;
    bool fits = shape.rank() < y.rank();
    for (int i = shape.rank() - 1, j = y.rank() - 2; fits && i >= skipped; --i, --j) {
      fits = shape[i] == y[j];
    }
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "term ", term, ": got rows along ", to_string(shape),
           ", expected the last dims of ", to_string(y), " before its last");
    }
  }

  Term term(const OpRun& run, size_t r, size_t t) const {
    ConstTensorView rows = run.input(rows_of(t)).view(r);
    Term term;
    term.rows = rows.as<float>();
    if (run.has_input(ids_of(t))) {
      term.ids = run.input(ids_of(t)).view(r);
      term.length = rows.shape[0];
      term.period = term.ids.elements();
    } else {
      term.period = rows.shape.elements(0, rows.shape.rank() - 1);
    }
    return term;
  }

  // Rows [begin, end) of one Request.
  void rows(const OpRun& run, size_t r, int64_t width, int64_t begin, int64_t end) const {
    std::array<Term, kMaxTerms> terms;
    for (size_t t = 0; t < terms_; ++t) terms[t] = term(run, r, t);
    const float* scale = run.input(kScale).view(r).as<float>();
    const float* bias = run.has_input(kBias) ? run.input(kBias).view(r).as<float>() : nullptr;
    float* y = run.output(0).view(r).as<float>();
    for (int64_t row = begin; row < end; row += kBlock) {
      int64_t count = std::min(kBlock, end - row);
      float* block = y + row * width;
      for (int64_t i = 0; i < count; ++i) {
        if (row + i + kAhead < end) fetch(terms[0].at(row + i + kAhead, width), width);
        float* to = block + i * width;
        const float* second = terms_ > 1 ? terms[1].at(row + i, width) : nullptr;
        kernels_.sum(terms[0].at(row + i, width), second, to, width);
        if (terms_ > 2) kernels_.sum(to, terms[2].at(row + i, width), to, width);
      }
      kernels_.layer_norm(block, block, count, width, scale, bias, epsilon_, nullptr, nullptr);
    }
  }

  static void fetch(const float* row, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(row + i);
  }

  const NormKernels& kernels_;
  float epsilon_;
  size_t terms_;
};

}  // namespace

std::unique_ptr<Op> make_embedding_norm(const NodeSpec& spec) {
  size_t terms = 0;
  for (size_t t = 0; t < kMaxTerms && spec.has_input(kTerms + 2 * t); ++t) ++terms;
  if (!spec.has_input(kScale) || terms == 0 || !spec.has_input(kTerms + 1) ||
      spec.inputs() > kTerms + 2 * kMaxTerms) {
    spec.invalid(str("got ", spec.inputs(), " inputs and ", terms,
                     " terms, expected a scale and 1 to 3 terms, the first with ids"));
  }
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (!spec.has_input(i)) continue;
    if (i > kTerms && (i - kTerms) % 2 == 1) {
      require_index_dtype(spec, i);
    } else if (spec.input_dtypes[i] != DType::kF32) {
      unsupported_dtype(spec, i);
    }
  }
  return std::make_unique<EmbeddingNorm>(spec, terms);
}

}  // namespace headrace
