// headrace.Attention: softmax(scale * Q K^T + mask) V per head, every Request at its exact length.
#include "ops/attention/problem.h"

namespace headrace {
namespace {

enum class Layout {
  kQkv,   // one input [B, S, 3 * H * D]: queries, keys and values side by side
  kBsd,   // Q [B, Sq, H * D], K and V [B, Sk, Hkv * D]
  kBhsd,  // Q [B, H, Sq, D], K and V [B, Hkv, Sk, D]
};

class FusedAttention final : public Op {
 public:
  explicit FusedAttention(const NodeSpec& spec)
      : kernels_(attention_kernels_for(spec.isa, precision_of(spec))),
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
      check(spec, spec.input_dtypes[i], str("input ", i));
    }
    if (precision_of(spec) == Precision::kInt8) spec.unsupported("no kernel for int8");
    check(spec, spec.output_dtypes[0], "an output");
    if (spec.has_input(kMask) && spec.input_dtypes[kMask] != DType::kF32 &&
        spec.input_dtypes[kMask] != DType::kBool) {
      spec.unsupported(
          str("a mask of ", name_of(spec.input_dtypes[kMask]), ", only float32 and bool are"));
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    AttentionProblem problem = resolve(inputs);
    outputs[0] = inputs[0].shape;
    if (layout_ == Layout::kQkv) outputs[0][2] = heads_ * problem.head_dim;
  }

  void run(const OpRun& run) const override {
    auto requests = static_cast<int64_t>(run.requests());
    std::span problems(run.scratch_of<AttentionProblem>(requests), run.requests());
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView inputs[4];
      for (size_t i = 0; i < 4; ++i) {
        if (run.has_input(i)) inputs[i] = run.input(i).view(r);
      }
      problems[r] = resolve(inputs);
      problems[r].o.bf16 = run.output(0).dtype == DType::kBF16;
      problems[r].output = run.output(0).view(r).data;
    }
    run_attention(run, kernels_, problems);
  }

 private:
  static constexpr size_t kMask = 3;

  // Between ops of low precision values may be bfloat16.
  static void check(const NodeSpec& spec, DType dtype, std::string_view what) {
    bool low = precision_of(spec) == Precision::kBf16;
    if (dtype == DType::kF32 || (low && dtype == DType::kBF16)) return;
    spec.unsupported(str("got ", what, " of dtype ", name_of(dtype), ", expected float32",
                         low ? " or bfloat16" : ""));
  }

  // An operand's rows, `first` elements on.
  static AttentionRows rows(const ConstTensorView& x, int64_t first, int64_t batch_stride,
                            int64_t head_stride, int64_t row_stride) {
    bool bf16 = x.dtype == DType::kBF16;
    const auto* data = static_cast<const std::byte*>(x.data);
    return {data == nullptr ? nullptr : data + first * (bf16 ? 2 : 4), bf16, batch_stride,
            head_stride, row_stride};
  }

  static Layout parse_layout(const NodeSpec& spec) {
    std::string layout = spec.string_or("layout", "");
    if (layout == "qkv") return Layout::kQkv;
    if (layout == "bsd") return Layout::kBsd;
    if (layout == "bhsd") return Layout::kBhsd;
    spec.invalid(str("attribute 'layout': got '", layout, "', expected qkv, bsd or bhsd"));
  }

  [[noreturn]] static void bad_shape(const char* input, const Shape& got,
                                     const std::string& expected) {
    fail(ErrorKind::kShapeMismatch, input, ": got ", to_string(got), ", expected ", expected);
  }

  // Everything but the output, checked. infer() may be given inputs without data.
  AttentionProblem resolve(InputViews inputs) const {
    AttentionProblem p = layout_ == Layout::kQkv   ? resolve_qkv(inputs[0])
                         : layout_ == Layout::kBsd ? resolve_bsd(inputs)
                                                   : resolve_bhsd(inputs);
    p.heads = heads_;
    p.kv_heads = kv_heads_;
    p.value_dim = p.head_dim;
    p.scale = scale_;
    p.zero_if_empty = p.zero_if_nan = guard_nan_;
    if (inputs.size() > kMask && inputs[kMask].present()) {
      set_mask_strides(inputs[kMask].shape, false, p);
      if (inputs[kMask].dtype == DType::kF32) p.mask = inputs[kMask].as<float>();
      if (inputs[kMask].dtype == DType::kBool) p.keep = inputs[kMask].as<bool>();
    }
    return p;
  }

  AttentionProblem resolve_qkv(const ConstTensorView& input) const {
    const Shape& x = input.shape;
    if (x.rank() != 3 || x[2] % (3 * heads_) != 0) {
      bad_shape("QKV", x, str("[B, S, 3 * ", heads_, " * D]"));
    }
    int64_t width = x[2] / 3;
    AttentionProblem p;
    p.batch = x[0];
    p.queries = p.keys = x[1];
    p.head_dim = width / heads_;
    auto part = [&](int64_t i) { return rows(input, i * width, x[1] * x[2], p.head_dim, x[2]); };
    p.q = part(0);
    p.k = part(1);
    p.v = part(2);
    p.o = {nullptr, false, x[1] * width, p.head_dim, width};
    return p;
  }

  AttentionProblem resolve_bsd(InputViews inputs) const {
    const Shape& q = inputs[0].shape;
    const Shape& k = inputs[1].shape;
    if (q.rank() != 3 || q[2] % heads_ != 0) bad_shape("Q", q, str("[B, Sq, ", heads_, " * D]"));
    int64_t head_dim = q[2] / heads_;
    if (k.rank() != 3 || k[0] != q[0] || k[2] != kv_heads_ * head_dim) {
      bad_shape("K", k, str("[", q[0], ", Sk, ", kv_heads_ * head_dim, "]"));
    }
    if (inputs[2].shape != k) bad_shape("V", inputs[2].shape, to_string(k));
    AttentionProblem p;
    p.batch = q[0];
    p.queries = q[1];
    p.keys = k[1];
    p.head_dim = head_dim;
    p.o = p.q = rows(inputs[0], 0, q[1] * q[2], head_dim, q[2]);
    p.k = rows(inputs[1], 0, k[1] * k[2], head_dim, k[2]);
    p.v = rows(inputs[2], 0, k[1] * k[2], head_dim, k[2]);
    return p;
  }

  AttentionProblem resolve_bhsd(InputViews inputs) const {
    const Shape& q = inputs[0].shape;
    const Shape& k = inputs[1].shape;
    if (q.rank() != 4 || q[1] != heads_) bad_shape("Q", q, str("[B, ", heads_, ", Sq, D]"));
    if (k.rank() != 4 || k[0] != q[0] || k[1] != kv_heads_ || k[3] != q[3]) {
      bad_shape("K", k, str("[", q[0], ", ", kv_heads_, ", Sk, ", q[3], "]"));
    }
    if (inputs[2].shape != k) bad_shape("V", inputs[2].shape, to_string(k));
    AttentionProblem p;
    p.batch = q[0];
    p.queries = q[2];
    p.keys = k[2];
    p.head_dim = q[3];
    p.o = p.q = rows(inputs[0], 0, q[1] * q[2] * q[3], q[2] * q[3], q[3]);
    p.k = rows(inputs[1], 0, k[1] * k[2] * k[3], k[2] * k[3], k[3]);
    p.v = rows(inputs[2], 0, k[1] * k[2] * k[3], k[2] * k[3], k[3]);
    return p;
  }

  const AttentionKernels& kernels_;
  Layout layout_;
  int64_t heads_;
  int64_t kv_heads_;
  float scale_;
  bool guard_nan_;
};

}  // namespace

std::unique_ptr<Op> make_fused_attention(const NodeSpec& spec) {
  return std::make_unique<FusedAttention>(spec);
}

}  // namespace headrace
