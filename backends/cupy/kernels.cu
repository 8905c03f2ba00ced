// The fused ops between the products of matrices, for float32 on a CUDA device. kernels.py launches
// them; fused.py and networks.py say in the array API what each must agree with.
//
// No result depends on how many rows there are: a block, or a warp of attention, has one row, and
// sums in one order.

// cuda_on_host.h stands in for CUDA in tests: then there is no __CUDACC__.

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;
// Elements of a query, a key or a value that one lane holds at most: depths up to 256.
constexpr int kDepthPerLane = 8;

#if defined(__CUDACC__)
__device__ float infinity() {
  return __int_as_float(0x7f800000);
}
__device__ float not_a_number() {
  return __int_as_float(0x7fc00000);
}
#else
float infinity() {
  return std::numeric_limits<float>::infinity();
}
float not_a_number() {
  return std::numeric_limits<float>::quiet_NaN();
}
#endif

enum Activation { kNone, kRelu, kGeluErf, kGeluTanh, kSigmoid, kTanh, kSilu };

__device__ float activated(float x, int activation) {
  switch (activation) {
    case kRelu:
      return x > 0.0f ? x : (x != x ? x : 0.0f);  // a NaN stays one
    case kGeluErf:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case kSigmoid:
      return 1.0f / (1.0f + expf(-x));
    case kTanh:
      return tanhf(x);
    case kSilu:
      return x / (1.0f + expf(-x));
    default:
      return x;
  }
}

__device__ float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset >>= 1)
    value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

__device__ float warp_max(float value) {
  for (int offset = kWarp / 2; offset > 0; offset >>= 1)
    value = fmaxf(value, __shfl_xor_sync(kAll, value, offset));
  return value;
}

// The sum or the maximum over the block, in every thread. `parts` has one element per warp.
__device__ float block_sum(float value, float* parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? parts[lane] : 0.0f);
  __syncthreads();  // before `parts` is written again
  return value;
}

__device__ float block_max(float value, float* parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_max(value);
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = warp_max(lane < static_cast<int>(blockDim.x) / kWarp ? parts[lane] : -infinity());
  __syncthreads();
  return value;
}

// y = x, normalised and scaled. `x` may be `y`: each thread reads only what it wrote itself.
__device__ void norm_row(const float* x, float* y, const float* scale, const float* bias, int width,
                         float epsilon, bool centred, float* parts) {
  float mean = 0.0f;
  if (centred) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    mean = block_sum(sum, parts) / static_cast<float>(width);
  }
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
  const float variance = block_sum(squares, parts) / static_cast<float>(width);
  const float factor = 1.0f / sqrtf(variance + epsilon);
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float value = (x[i] - mean) * factor * scale[i];
    y[i] = bias == nullptr ? value : value + bias[i];
  }
}

}  // namespace

extern "C" {

// y = activation(y + bias) + residual, for [rows, width]. Bias and residual may be null.
__global__ void epilogue(float* y, const float* bias, const float* residual, long long size,
                         int width, int activation) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    float value = bias == nullptr ? y[i] : y[i] + bias[i % width];
    value = activated(value, activation);
    y[i] = residual == nullptr ? value : value + residual[i];
  }
}

// y = activation(x)
__global__ void unary(const float* x, float* y, long long size, int activation) {
  const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += step) {
    y[i] = activated(x[i], activation);
  }
}

// One block per row.
__global__ void layer_norm(const float* x, const float* scale, const float* bias, float* y,
                           int width, float epsilon, int centred) {
  __shared__ float parts[kWarp];
  const long long at = static_cast<long long>(blockIdx.x) * width;
  norm_row(x + at, y + at, scale, bias, width, epsilon, centred != 0, parts);
}

// The sum of up to four terms, normalised. A term is a row of a table, chosen by the ids, or,
// without ids, the row of an array of [rows, width]; an array of fewer rows repeats.
__global__ void embedding_norm(const float* table0, const long long* ids0, long long rows0,
                               const float* table1, const long long* ids1, long long rows1,
                               const float* table2, const long long* ids2, long long rows2,
                               const float* table3, const long long* ids3, long long rows3,
                               const float* scale, const float* bias, float* y, int width,
                               float epsilon) {
  __shared__ float parts[kWarp];
  const float* tables[4] = {table0, table1, table2, table3};
  const long long* ids[4] = {ids0, ids1, ids2, ids3};
  const long long rows[4] = {rows0, rows1, rows2, rows3};
  const long long row = blockIdx.x;
  float* out = y + row * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0.0f;
    for (int term = 0; term < 4; ++term) {
      if (tables[term] == nullptr) continue;
      long long from = ids[term] == nullptr ? row % rows[term] : ids[term][row];
      if (from < 0) from += rows[term];
      // An index outside of the table gives NaN, not a read outside of the table.
      sum += from >= 0 && from < rows[term] ? tables[term][from * width + i] : not_a_number();
    }
    out[i] = sum;
  }
  norm_row(out, out, scale, bias, width, epsilon, true, parts);
}

// One block per row.
__global__ void softmax(const float* x, float* y, int width) {
  __shared__ float parts[kWarp];
  const float* row = x + static_cast<long long>(blockIdx.x) * width;
  float* out = y + static_cast<long long>(blockIdx.x) * width;
  float top = -infinity();
  for (int i = threadIdx.x; i < width; i += blockDim.x) top = fmaxf(top, row[i]);
  top = block_max(top, parts);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += expf(row[i] - top);
  sum = block_sum(sum, parts);
  for (int i = threadIdx.x; i < width; i += blockDim.x) out[i] = expf(row[i] - top) / sum;
}

// softmax(q k^T * scale + mask) v, one warp per query, keys in order, nothing kept of the scores.
// Strides are in elements, by batch, head and row; the last axis is contiguous. Out is [batch,
// heads, queries, width]. One of the masks at most: added to the scores, or false for keys that do
// not count; strides of 0 broadcast.
__global__ void attention(const float* q, const float* k, const float* v, const float* added,
                          const bool* kept, float* out, int heads, int kv_heads, int queries,
                          int keys, int depth, int width, long long q_batch, long long q_head,
                          long long q_row, long long k_batch, long long k_head, long long k_row,
                          long long v_batch, long long v_head, long long v_row, long long m_batch,
                          long long m_head, long long m_row, long long m_key, float scale,
                          int guard) {
  const int lane = threadIdx.x % kWarp;
  const int query = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (query >= queries) return;  // whole warps leave, and no barrier follows
  const long long batch = blockIdx.y / heads, head = blockIdx.y % heads,
                  shared_head = head / (heads / kv_heads);
  q += batch * q_batch + head * q_head + query * q_row;
  k += batch * k_batch + shared_head * k_head;
  v += batch * v_batch + shared_head * v_head;
  const long long mask = batch * m_batch + head * m_head + query * m_row;

  float mine[kDepthPerLane], sums[kDepthPerLane];
  for (int i = 0; i < kDepthPerLane; ++i) {
    const int at = lane + i * kWarp;
    mine[i] = at < depth ? q[at] : 0.0f;
    sums[i] = 0.0f;
  }
  float top = -infinity(), total = 0.0f;
  for (int key = 0; key < keys; ++key) {
    float score = 0.0f;
    for (int i = 0; i < kDepthPerLane; ++i) {
      const int at = lane + i * kWarp;
      if (at < depth) score += mine[i] * k[key * k_row + at];
    }
    score = warp_sum(score) * scale;
    if (added != nullptr) score += added[mask + key * m_key];
    if (kept != nullptr && !kept[mask + key * m_key]) score = -infinity();
    if (score == -infinity()) continue;  // the same in every lane
    const float new_top = fmaxf(top, score);
    const float shrink = expf(top - new_top), power = expf(score - new_top);
    top = new_top;
    total = total * shrink + power;
    for (int i = 0; i < kDepthPerLane; ++i) {
      const int at = lane + i * kWarp;
      if (at < width) sums[i] = sums[i] * shrink + power * v[key * v_row + at];
    }
  }
  // No key counted: NaN, as a softmax over nothing is, or zeros where the graph asks for them.
  out += (static_cast<long long>(blockIdx.y) * queries + query) * width;
  for (int i = 0; i < kDepthPerLane; ++i) {
    const int at = lane + i * kWarp;
    if (at < width) out[at] = total == 0.0f && guard ? 0.0f : sums[i] / total;
  }
}

}  // extern "C"
