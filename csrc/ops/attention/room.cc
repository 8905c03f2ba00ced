// The attention room's registration, and how a Batch's attention is cut into blocks.
#include <algorithm>

#include "ops/attention/problem.h"
#include "ops/rooms.h"

namespace headrace {

HEADRACE_DECLARE_KERNELS(AttentionKernels, attention_kernels)
HEADRACE_DECLARE_KERNELS(AttentionKernels, attention_bf16_kernels)
#if defined(HEADRACE_KERNELS_X86)
namespace avx512_bf16 {
extern const AttentionKernels attention_bf16_kernels;
}
#elif defined(HEADRACE_KERNELS_NEON)
namespace neon_bf16 {
extern const AttentionKernels attention_bf16_kernels;
}
#endif

const AttentionKernels& attention_kernels_for(Isa isa, Precision precision) {
  if (precision != Precision::kBf16) return HEADRACE_KERNELS(isa, attention_kernels);
#if defined(HEADRACE_KERNELS_X86)
  if (isa == Isa::kAvx512Bf16) return avx512_bf16::attention_bf16_kernels;
#elif defined(HEADRACE_KERNELS_NEON)
  if (isa == Isa::kNeonBf16) return neon_bf16::attention_bf16_kernels;
#endif
  return HEADRACE_KERNELS(isa, attention_bf16_kernels);
}

namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kMinWorkPerTask = 1 << 17;

// Blocks of queries per thread that are enough for an even share.
constexpr int64_t kBlocksPerThread = 4;

int64_t query_blocks(const AttentionProblem& problem, int64_t query_block) {
  return (problem.queries + query_block - 1) / query_block;
}

// Block `task` of the Batch.
AttentionBlock block_at(std::span<const AttentionProblem> problems, int64_t query_block,
                        int64_t task) {
  auto after = std::ranges::upper_bound(problems, task, {}, &AttentionProblem::first_task);
  const AttentionProblem& p = *(after - 1);
  int64_t blocks = query_blocks(p, query_block);
  task -= p.first_task;
  int64_t query = task % blocks * query_block;
  int64_t head = task / blocks % p.heads;
  int64_t batch = task / blocks / p.heads;
  int64_t kv_head = head / (p.heads / p.kv_heads);
  int64_t queries = std::min(query_block, p.queries - query);
  int64_t keys = p.keys;
  int64_t offset = p.causal_offset;
  if (p.valid_keys != nullptr) {
    offset = p.valid_keys[batch] - p.queries;
    keys = std::clamp<int64_t>(p.valid_keys[batch], 0, keys);
  }
  // Keys beyond the last query's diagonal add nothing to any query of the block.
  if (p.causal) keys = std::clamp<int64_t>(query + queries + offset, 0, keys);
  int64_t mask_at =
      batch * p.mask_strides[0] + head * p.mask_strides[1] + query * p.mask_strides[2];
  return {.q = p.q.at(batch, head, query),
          .k = p.k.at(batch, kv_head, 0),
          .v = p.v.at(batch, kv_head, 0),
          .o = static_cast<std::byte*>(p.output) + p.o.offset(batch, head, query),
          .o_stride = p.o.row_stride,
          .o_bf16 = p.o.bf16,
          .queries = queries,
          .keys = keys,
          .head_dim = p.head_dim,
          .value_dim = p.value_dim,
          .scale = p.scale,
          .softcap = p.softcap,
          .mask = p.mask ? p.mask + mask_at : nullptr,
          .keep = p.keep ? p.keep + mask_at : nullptr,
          .mask_q_stride = p.mask_strides[2],
          .mask_k_stride = p.mask_strides[3],
          .causal = p.causal,
          .causal_offset = query + offset,
          .zero_if_empty = p.zero_if_empty,
          .zero_if_nan = p.zero_if_nan};
}

RowsAhead rows_ahead(const AttentionOperand& x, int64_t count, int64_t elements) {
  const int64_t size = x.bf16 ? 2 : 4;
  return {static_cast<const std::byte*>(x.rows), x.stride * size, elements * size, count};
}

// Blocks [task, end), of which the last fetches block `after`, unless that is -1.
void attend(const AttentionKernels& kernels, std::span<const AttentionProblem> problems,
            int64_t query_block, int64_t task, int64_t end, int64_t after, float* scratch) {
  AttentionBlock block = block_at(problems, query_block, task);
  for (; task < end; ++task) {
    AttentionBlock next;
    const int64_t following = task + 1 < end ? task + 1 : after;
    if (following >= 0) next = block_at(problems, query_block, following);
    block.ahead[0] =
        rows_ahead({block.o, block.o_stride, block.o_bf16}, block.queries, block.value_dim);
    block.ahead[1] = rows_ahead(next.q, next.queries, next.head_dim);
    block.ahead[2] = rows_ahead(next.k, next.keys, next.head_dim);
    block.ahead[3] = rows_ahead(next.v, next.keys, next.value_dim);
    block.scratch = scratch;
    kernels.attend(block);
    block = next;
  }
}

}  // namespace

void set_mask_strides(const Shape& mask, bool fewer_keys, AttentionProblem& problem) {
  const Shape scores{problem.batch, problem.heads, problem.queries, problem.keys};
  int64_t stride = 1;
  bool fits = mask.rank() <= 4;
  for (int axis = 3; fits && axis >= 4 - mask.rank(); --axis) {
    int64_t dim = mask[axis - 4 + mask.rank()];
    bool shorter = axis == 3 && fewer_keys && dim < scores[axis];
    fits = dim == 1 || dim == scores[axis] || shorter;
    if (shorter) problem.keys = dim;
    problem.mask_strides[axis] = dim == 1 ? 0 : stride;
    stride *= dim;
  }
  if (!fits) {
    fail(ErrorKind::kShapeMismatch, "mask: got ", to_string(mask),
         ", expected one that broadcasts to ", to_string(scores));
  }
}

void run_attention(const OpRun& run, const AttentionKernels& kernels,
                   std::span<AttentionProblem> problems) {
  int64_t work = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  int64_t large_blocks = 0;
  for (const AttentionProblem& p : problems) {
    work += p.batch * p.heads * p.queries * p.keys * (p.head_dim + p.value_dim);
    head_dim = std::max(head_dim, p.head_dim);
    value_dim = std::max(value_dim, p.value_dim);
    large_blocks += p.batch * p.heads * query_blocks(p, kernels.query_block);
  }
  // Large blocks share the packing of keys and values, small ones give more threads work.
  bool large = large_blocks >= kBlocksPerThread * run.threads() || run.threads() == 1;
  int64_t query_block = large ? kernels.query_block : kernels.query_lanes;
  int64_t tasks = 0;
  for (AttentionProblem& p : problems) {
    p.first_task = tasks;
    tasks += p.value_dim > 0 ? p.batch * p.heads * query_blocks(p, query_block) : 0;
  }
  if (tasks == 0) return;
  // A multiple of a cache line, so that threads never share one.
  int64_t scratch_floats = (kernels.scratch_floats(head_dim, value_dim) + 15) / 16 * 16;
  auto* scratch = run.scratch_of<float>(scratch_floats * run.threads());
  int64_t chunks = std::clamp<int64_t>(work / kMinWorkPerTask, 1, tasks);
  run.parallel(chunks, [&](int64_t chunk, int thread) {
    // Threads take chunks in turn, so that this one's next is likely to be that many further on.
    int64_t after = chunk + run.threads();
    attend(kernels, problems, query_block, tasks * chunk / chunks, tasks * (chunk + 1) / chunks,
           after < chunks ? tasks * after / chunks : -1, scratch + thread * scratch_floats);
  });
}

void register_attention_ops(OpRegistry& registry) {
  registry.add("headrace.Attention", make_fused_attention);
  registry.add("Attention", make_onnx_attention);
}

}  // namespace headrace
