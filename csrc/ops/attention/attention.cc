// headrace.Attention: softmax(scale * Q K^T + mask) V per head, every Request at its exact length.
#include "ops/attention/attention.h"

#include <algorithm>

#include "ops/op.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

enum class Layout {
  kQkv,   // one input [B, S, 3 * H * D]: queries, keys and values side by side
  kBsd,   // Q [B, Sq, H * D], K and V [B, Sk, Hkv * D]
  kBhsd,  // Q [B, H, Sq, D], K and V [B, Hkv, Sk, D]
};

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kMinWorkPerTask = 1 << 17;

// Where the rows of an operand are, in elements.
struct Rows {
  int64_t offset = 0;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  int64_t at(int64_t batch, int64_t head, int64_t row) const {
    return offset + batch * batch_stride + head * head_stride + row * row_stride;
  }
};

// One Request's attention.
struct Problem {
  int64_t batch = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  Rows q = {}, k = {}, v = {}, o = {};
  int64_t mask_strides[4] = {};  // 0 along axes the mask is broadcast over
  const float* data[3] = {nullptr, nullptr, nullptr};
  float* output = nullptr;
  const float* mask = nullptr;
  const bool* keep = nullptr;
  int64_t first_task = 0;
};

class Attention final : public Op {
 public:
  explicit Attention(const NodeSpec& spec)
      : kernels_(HEADRACE_KERNELS(spec.isa, attention_kernels)),
        layout_(parse_layout(spec)),
        heads_(spec.int_or("num_heads", 0)),
        kv_heads_(spec.int_or("kv_heads", heads_)),
        scale_(spec.float_or("scale", 0.0f)),
        guard_nan_(spec.int_or("guard_nan", 0) != 0) {
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_ != 0) {
      spec.invalid(str("got num_heads ", heads_, " and kv_heads ", kv_heads_,
                       ", expected a multiple of kv_heads"));
    }
    if (!spec.has("scale")) spec.invalid("attribute 'scale' is missing");
    if (layout_ == Layout::kQkv && kv_heads_ != heads_) {
      spec.unsupported("layout qkv with kv_heads other than num_heads");
    }
    size_t operands = layout_ == Layout::kQkv ? 1 : 3;
    for (size_t i = 0; i < operands; ++i) {
      if (!spec.has_input(i)) spec.invalid(str("input ", i, " is missing"));
      if (spec.input_dtypes[i] != DType::kF32) {
        spec.unsupported(str("no kernel for ", name_of(spec.input_dtypes[i])));
      }
    }
    if (spec.has_input(kMask) && spec.input_dtypes[kMask] != DType::kF32 &&
        spec.input_dtypes[kMask] != DType::kBool) {
      spec.unsupported(
          str("a mask of ", name_of(spec.input_dtypes[kMask]), ", only float32 and bool are"));
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Problem problem = resolve(inputs);
    outputs[0] = inputs[0].shape;
    if (layout_ == Layout::kQkv) outputs[0][2] = heads_ * problem.head_dim;
  }

  void run(const OpRun& run) const override {
    if (run.output(0).elements() == 0) return;
    auto requests = static_cast<int64_t>(run.requests());
    std::span problems(run.scratch_of<Problem>(requests), run.requests());
    int64_t tasks = 0;
    int64_t work = 0;
    int64_t head_dim = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      Problem& problem = problems[r] = bind(run, r);
      problem.first_task = tasks;
      tasks += problem.batch * heads_ * query_blocks(problem);
      work += problem.batch * heads_ * problem.queries * problem.keys * problem.head_dim * 2;
      head_dim = std::max(head_dim, problem.head_dim);
    }
    // A multiple of a cache line, so that threads never share one.
    int64_t scratch_floats = (kernels_.scratch_floats(head_dim) + 15) / 16 * 16;
    auto* scratch = run.scratch_of<float>(scratch_floats * run.threads());
    int64_t chunks = std::clamp<int64_t>(work / kMinWorkPerTask, 1, tasks);
    run.parallel(chunks, [&](int64_t chunk, int thread) {
      for (int64_t t = tasks * chunk / chunks; t < tasks * (chunk + 1) / chunks; ++t) {
        attend(problems, t, scratch + thread * scratch_floats);
      }
    });
  }

 private:
  static constexpr size_t kMask = 3;

  static Layout parse_layout(const NodeSpec& spec) {
    std::string layout = spec.string_or("layout", "");
    if (layout == "qkv") return Layout::kQkv;
    if (layout == "bsd") return Layout::kBsd;
    if (layout == "bhsd") return Layout::kBhsd;
    spec.invalid(str("attribute 'layout': got '", layout, "', expected qkv, bsd or bhsd"));
  }

  int64_t query_blocks(const Problem& problem) const {
    return (problem.queries + kernels_.query_block - 1) / kernels_.query_block;
  }

  [[noreturn]] static void bad_shape(const char* input, const Shape& got,
                                     const std::string& expected) {
    fail(ErrorKind::kShapeMismatch, input, ": got ", to_string(got), ", expected ", expected);
  }

  // Sizes and strides, checked.
  Problem resolve(InputViews inputs) const {
    Problem problem = layout_ == Layout::kQkv   ? resolve_qkv(inputs[0].shape)
                      : layout_ == Layout::kBsd ? resolve_bsd(inputs)
                                                : resolve_bhsd(inputs);
    if (inputs.size() > kMask && inputs[kMask].present()) {
      resolve_mask(inputs[kMask].shape, problem);
    }
    return problem;
  }

  Problem resolve_qkv(const Shape& x) const {
    if (x.rank() != 3 || x[2] % (3 * heads_) != 0) {
      bad_shape("QKV", x, str("[B, S, 3 * ", heads_, " * D]"));
    }
    int64_t width = x[2] / 3;
    Problem p{.batch = x[0], .queries = x[1], .keys = x[1], .head_dim = width / heads_};
    p.q = {0, x[1] * x[2], p.head_dim, x[2]};
    p.k = {width, x[1] * x[2], p.head_dim, x[2]};
    p.v = {2 * width, x[1] * x[2], p.head_dim, x[2]};
    p.o = {0, x[1] * width, p.head_dim, width};
    return p;
  }

  Problem resolve_bsd(InputViews inputs) const {
    const Shape& q = inputs[0].shape;
    const Shape& k = inputs[1].shape;
    if (q.rank() != 3 || q[2] % heads_ != 0) bad_shape("Q", q, str("[B, Sq, ", heads_, " * D]"));
    int64_t head_dim = q[2] / heads_;
    if (k.rank() != 3 || k[0] != q[0] || k[2] != kv_heads_ * head_dim) {
      bad_shape("K", k, str("[", q[0], ", Sk, ", kv_heads_ * head_dim, "]"));
    }
    if (inputs[2].shape != k) bad_shape("V", inputs[2].shape, to_string(k));
    Problem p{.batch = q[0], .queries = q[1], .keys = k[1], .head_dim = head_dim};
    p.q = p.o = {0, q[1] * q[2], head_dim, q[2]};
    p.k = p.v = {0, k[1] * k[2], head_dim, k[2]};
    return p;
  }

  Problem resolve_bhsd(InputViews inputs) const {
    const Shape& q = inputs[0].shape;
    const Shape& k = inputs[1].shape;
    if (q.rank() != 4 || q[1] != heads_) bad_shape("Q", q, str("[B, ", heads_, ", Sq, D]"));
    if (k.rank() != 4 || k[0] != q[0] || k[1] != kv_heads_ || k[3] != q[3]) {
      bad_shape("K", k, str("[", q[0], ", ", kv_heads_, ", Sk, ", q[3], "]"));
    }
    if (inputs[2].shape != k) bad_shape("V", inputs[2].shape, to_string(k));
    Problem p{.batch = q[0], .queries = q[2], .keys = k[2], .head_dim = q[3]};
    p.q = p.o = {0, q[1] * q[2] * q[3], q[2] * q[3], q[3]};
    p.k = p.v = {0, k[1] * k[2] * k[3], k[2] * k[3], k[3]};
    return p;
  }

  void resolve_mask(const Shape& mask, Problem& problem) const {
    const Shape scores{problem.batch, heads_, problem.queries, problem.keys};
    if (mask.rank() > 4) bad_shape("mask", mask, "one that broadcasts to " + to_string(scores));
    int64_t stride = 1;
    for (int axis = 3; axis >= 4 - mask.rank(); --axis) {
      int64_t dim = mask[axis - 4 + mask.rank()];
      if (dim != 1 && dim != scores[axis]) {
        bad_shape("mask", mask, "one that broadcasts to " + to_string(scores));
      }
      problem.mask_strides[axis] = dim == 1 ? 0 : stride;
      stride *= dim;
    }
  }

  Problem bind(const OpRun& run, size_t r) const {
    ConstTensorView inputs[4];
    for (size_t i = 0; i < 4; ++i) {
      if (run.has_input(i)) inputs[i] = run.input(i).view(r);
    }
    Problem problem = resolve(inputs);
    for (size_t i = 0; i < 3; ++i) {
      problem.data[i] = inputs[layout_ == Layout::kQkv ? 0 : i].as<float>();
    }
    problem.output = run.output(0).view(r).as<float>();
    if (inputs[kMask].dtype == DType::kF32) problem.mask = inputs[kMask].as<float>();
    if (inputs[kMask].dtype == DType::kBool) problem.keep = inputs[kMask].as<bool>();
    return problem;
  }

  void attend(std::span<const Problem> problems, int64_t task, float* scratch) const {
    auto after = std::ranges::upper_bound(problems, task, {}, &Problem::first_task);
    const Problem& p = *(after - 1);
    int64_t blocks = query_blocks(p);
    task -= p.first_task;
    int64_t query = task % blocks * kernels_.query_block;
    int64_t head = task / blocks % heads_;
    int64_t batch = task / blocks / heads_;
    int64_t kv_head = head / (heads_ / kv_heads_);
    int64_t mask_at =
        batch * p.mask_strides[0] + head * p.mask_strides[1] + query * p.mask_strides[2];
    kernels_.attend({.q = p.data[0] + p.q.at(batch, head, query),
                     .k = p.data[1] + p.k.at(batch, kv_head, 0),
                     .v = p.data[2] + p.v.at(batch, kv_head, 0),
                     .o = p.output + p.o.at(batch, head, query),
                     .q_stride = p.q.row_stride,
                     .k_stride = p.k.row_stride,
                     .v_stride = p.v.row_stride,
                     .o_stride = p.o.row_stride,
                     .queries = std::min(kernels_.query_block, p.queries - query),
                     .keys = p.keys,
                     .head_dim = p.head_dim,
                     .scale = scale_,
                     .mask = p.mask ? p.mask + mask_at : nullptr,
                     .keep = p.keep ? p.keep + mask_at : nullptr,
                     .mask_q_stride = p.mask_strides[2],
                     .mask_k_stride = p.mask_strides[3],
                     .guard_nan = guard_nan_,
                     .scratch = scratch});
  }

  const AttentionKernels& kernels_;
  Layout layout_;
  int64_t heads_;
  int64_t kv_heads_;
  float scale_;
  bool guard_nan_;
};

}  // namespace

void register_attention_ops(OpRegistry& registry) {
  registry.add("headrace.Attention", [](const NodeSpec& spec) -> std::unique_ptr<Op> {
    return std::make_unique<Attention>(spec);
  });
}

}  // namespace headrace
