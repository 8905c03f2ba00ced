// headrace.Attention, every Request at its exact length: one launch for all heads of all of them.
//
// A block takes kQueries queries of one head through its keys, kWarp of them at a time, and keeps
// the largest score and the sum so far ("flash attention"): no score ever lies in global memory.
// Each warp has kQueries / kWarps queries; a lane has a key while scores are computed, and some
// dims of the output while values are added up. Blocks of keys begin at multiples of kWarp from the
// first, so that a query's bits depend on its own Request alone.
#include "cuda/gemm_tile.h"
#include "cuda/op.h"
#include "cuda/ragged.h"
#include "cuda/rooms.h"
#include "ops/attention/problem.h"

namespace headrace::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 4;  // queries per warp
constexpr int kQueries = kWarps * kRows;
constexpr int kKeys = static_cast<int>(kWarp);

// Where an operand's rows are: element d of a head's row i is at head * head_step + i * row_step +
// d.
struct Operand {
  const void* data;
  bool bf16;
  int64_t head_step;
  int64_t row_step;
};

// One sample of one Request.
struct Sample {
  Operand q, k, v;
  void* o;
  bool o_bf16;
  int64_t o_head_step, o_row_step;
  int64_t queries, keys, dim;
  const float* mask;  // at most one of these two
  const bool* keep;
  int64_t mask_head_step, mask_q_step, mask_k_step;
};

struct Settings {
  int64_t heads_per_kv;
  float scale;
  bool guard_nan;  // 0 instead of NaN
};

template <int kDim>
struct Shared {
  float q[kQueries][kDim];
  float k[kKeys][kDim + 1];  // lanes read one column of 32 rows
  float v[kKeys][kDim];
  float p[kQueries][kKeys];
};

template <int kDim>
__device__ void load_rows(float (*to)[kDim], const Operand& from, int64_t head, int64_t first,
                          int64_t rows, int count, int64_t dim) {
  for (int i = static_cast<int>(threadIdx.x); i < count * kDim; i += kWarps * kKeys) {
    int row = i / kDim, d = i % kDim;
    bool inside = first + row < rows && d < dim;
    int64_t at = head * from.head_step + (first + row) * from.row_step + d;
    to[row][d] = inside ? load_element(from.data, from.bf16, at) : 0.0f;
  }
}

__device__ float masked(const Sample& s, float score, int64_t head, int64_t query, int64_t key) {
  int64_t at = head * s.mask_head_step + query * s.mask_q_step + key * s.mask_k_step;
  if (s.mask != nullptr) return score + s.mask[at];
  if (s.keep != nullptr && !s.keep[at]) return -__builtin_inff();
  return score;
}

template <int kDim>
__global__ void __launch_bounds__(kWarps* kKeys)
    attention_kernel(const Sample* samples, Settings settings) {
  constexpr int kChunks = kDim / kKeys;  // dims per lane
  const Sample& s = samples[blockIdx.z];
  int64_t head = blockIdx.y;
  int64_t kv_head = head / settings.heads_per_kv;
  int64_t first = int64_t{blockIdx.x} * kQueries;
  if (first >= s.queries) return;  // the grid is cut for the longest
  auto& shared = shared_memory<Shared<kDim>>();
  int lane = static_cast<int>(threadIdx.x % kWarp);
  int warp_row = static_cast<int>(threadIdx.x / kWarp) * kRows;
  load_rows<kDim>(shared.q, s.q, head, first, s.queries, kQueries, s.dim);
  float max[kRows], sum[kRows], out[kRows][kChunks];
  for (int r = 0; r < kRows; ++r) {
    max[r] = -__builtin_inff();
    sum[r] = 0;
    for (int c = 0; c < kChunks; ++c) out[r][c] = 0;
  }
  for (int64_t key = 0; key < s.keys; key += kKeys) {
    load_rows<kDim + 1>(shared.k, s.k, kv_head, key, s.keys, kKeys, s.dim);
    load_rows<kDim>(shared.v, s.v, kv_head, key, s.keys, kKeys, s.dim);
    __syncthreads();
    for (int r = 0; r < kRows; ++r) {
      int row = warp_row + r;
      float score = 0;
      for (int d = 0; d < s.dim; ++d) score = fmaf(shared.q[row][d], shared.k[lane][d], score);
      score *= settings.scale;
      bool inside = key + lane < s.keys && first + row < s.queries;
      score = inside ? masked(s, score, head, first + row, key + lane) : -__builtin_inff();
      float top = fmaxf(max[r], warp_max(score));
      // With no key so far that counts, exp(-inf - -inf) would be NaN.
      float factor = top == -__builtin_inff() ? 1.0f : expf(max[r] - top);
      float p = inside ? expf(score - top) : 0.0f;
      if (top == -__builtin_inff() && score == top) p = 0;
      max[r] = top;
      sum[r] = fmaf(sum[r], factor, warp_sum(p));
      for (int c = 0; c < kChunks; ++c) out[r][c] *= factor;
      shared.p[row][lane] = p;
    }
    __syncwarp();
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kKeys; ++j) {
        float p = shared.p[warp_row + r][j];
        for (int c = 0; c < kChunks; ++c) {
          out[r][c] = fmaf(p, shared.v[j][c * kKeys + lane], out[r][c]);
        }
      }
    }
    __syncthreads();
  }
  for (int r = 0; r < kRows; ++r) {
    int64_t query = first + warp_row + r;
    if (query >= s.queries) continue;
    // No key counted, or a score was NaN.
    bool empty = sum[r] == 0 || sum[r] != sum[r];
    for (int c = 0; c < kChunks; ++c) {
      int64_t d = c * kKeys + lane;
      if (d >= s.dim) continue;
      float value = empty ? (settings.guard_nan ? 0.0f : __builtin_nanf("")) : out[r][c] / sum[r];
      store_element(s.o, s.o_bf16, head * s.o_head_step + query * s.o_row_step + d, value);
    }
  }
}

enum class Layout { kQkv, kBsd, kBhsd };

class AttentionOp final : public CudaOp {
 public:
  explicit AttentionOp(const NodeSpec& spec)
      : heads_(spec.int_or("num_heads", 1)),
        kv_heads_(spec.int_or("kv_heads", heads_)),
        settings_{heads_ / kv_heads_, spec.float_or("scale", 0.0f),
                  spec.int_or("guard_nan", 0) != 0} {
    std::string layout = spec.string_or("layout", "");
    layout_ = layout == "qkv" ? Layout::kQkv : layout == "bsd" ? Layout::kBsd : Layout::kBhsd;
  }

  void run(CudaRun& run) const override {
    if (run.output(0).elements() == 0) return;
    size_t count = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      count += static_cast<size_t>(run.output(0).shape(r)[0]);
    }
    auto samples = run.table<Sample>(count);
    Sample* next = samples.rows.data();
    int64_t longest = 0;
    int64_t dim = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      int64_t batch = run.output(0).shape(r)[0];
      for (int64_t b = 0; b < batch; ++b) {
        *next = sample(run, r, b);
        longest = std::max(longest, next->queries);
        dim = std::max(dim, next->dim);
        ++next;
      }
    }
    run.send(samples);
    dim3 grid(blocks_for(longest, kQueries), static_cast<unsigned>(heads_));
    if (dim <= 32) return launch_as<32>(run, grid, samples);
    if (dim <= 64) return launch_as<64>(run, grid, samples);
    if (dim <= 128) return launch_as<128>(run, grid, samples);
    if (dim <= 256) return launch_as<256>(run, grid, samples);
    fail(ErrorKind::kUnsupportedOp, "device cuda: got heads of ", dim,
         " dims, expected at most 256");
  }

 private:
  static constexpr size_t kMask = 3;

  template <int kDim>
  void launch_as(CudaRun& run, dim3 grid, const Table<Sample>& samples) const {
    in_stretches(static_cast<int64_t>(samples.rows.size()), 1, [&](int64_t first, int64_t count) {
      grid.z = static_cast<unsigned>(count);
      launch(run.stream(), {grid, kWarps * kKeys, sizeof(Shared<kDim>)}, attention_kernel<kDim>,
             samples.device + first, settings_);
    });
  }

  // Input `i` of a sample, `first` elements into its rows.
  static Operand operand(const CudaRun& run, size_t i, size_t r, int64_t first, int64_t head_step,
                         int64_t row_step) {
    bool bf16 = run.input(i).dtype == DType::kBF16;
    return {run.in<std::byte>(i, r) + first * (bf16 ? 2 : 4), bf16, head_step, row_step};
  }

  Sample sample(const CudaRun& run, size_t r, int64_t b) const {
    Sample s{};
    const Shape& q = run.input(0).shape(r);
    if (layout_ == Layout::kQkv) {
      s.queries = s.keys = q[1];
      s.dim = q[2] / 3 / heads_;
      int64_t width = q[2] / 3;
      auto part = [&](int64_t i) {
        return operand(run, 0, r, b * q[1] * q[2] + i * width, s.dim, q[2]);
      };
      s.q = part(0);
      s.k = part(1);
      s.v = part(2);
    } else {
      const Shape& k = run.input(1).shape(r);
      bool heads_first = layout_ == Layout::kBhsd;
      s.queries = q[heads_first ? 2 : 1];
      s.keys = k[heads_first ? 2 : 1];
      s.dim = heads_first ? q[3] : q[2] / heads_;
      auto rows = [&](size_t i, int64_t length, int64_t heads) {
        int64_t first = b * length * heads * s.dim;
        return heads_first ? operand(run, i, r, first, length * s.dim, s.dim)
                           : operand(run, i, r, first, s.dim, heads * s.dim);
      };
      s.q = rows(0, s.queries, heads_);
      s.k = rows(1, s.keys, kv_heads_);
      s.v = rows(2, s.keys, kv_heads_);
    }
    set_output(run, r, b, s);
    set_mask(run, r, b, s);
    return s;
  }

  void set_output(const CudaRun& run, size_t r, int64_t b, Sample& s) const {
    bool heads_first = layout_ == Layout::kBhsd;
    s.o_bf16 = run.output(0).dtype == DType::kBF16;
    s.o_head_step = heads_first ? s.queries * s.dim : s.dim;
    s.o_row_step = heads_first ? s.dim : heads_ * s.dim;
    int64_t first = b * s.queries * heads_ * s.dim;
    s.o = run.out<std::byte>(0, r) + first * (s.o_bf16 ? 2 : 4);
  }

  void set_mask(const CudaRun& run, size_t r, int64_t b, Sample& s) const {
    if (!run.has_input(kMask)) return;
    AttentionProblem like;
    like.batch = run.output(0).shape(r)[0];
    like.heads = heads_;
    like.queries = s.queries;
    like.keys = s.keys;
    set_mask_strides(run.input(kMask).shape(r), false, like);
    const int64_t* steps = like.mask_strides;
    if (run.input(kMask).dtype == DType::kBool) {
      s.keep = run.in<bool>(kMask, r) + b * steps[0];
    } else {
      s.mask = run.in<float>(kMask, r) + b * steps[0];
    }
    s.mask_head_step = steps[1];
    s.mask_q_step = steps[2];
    s.mask_k_step = steps[3];
  }

  int64_t heads_;
  int64_t kv_heads_;
  Settings settings_;
  Layout layout_;
};

std::unique_ptr<CudaOp> make_attention(const CudaNode& node) {
  const NodeSpec& spec = node.spec;
  size_t operands = spec.string_or("layout", "") == "qkv" ? 1 : 3;
  for (size_t i = 0; i < operands; ++i) {
    if (spec.is_constant(i)) spec.unsupported(str("device cuda: input ", i, " is a constant"));
  }
  return std::make_unique<AttentionOp>(spec);
}

}  // namespace

void register_attention_cuda(CudaRegistry& registry) {
  registry.add("headrace.Attention", make_attention);
}

}  // namespace headrace::cuda
