// ONNX's Attention (opset 23 and 24) with its key and value cache, causal mask and soft cap.
//
// https://onnx.ai/onnx/operators/onnx__Attention.html; what is not implemented is refused.
#include <cmath>
#include <cstring>

#include "ops/attention/problem.h"

namespace headrace {
namespace {

enum Input : size_t { kQ, kK, kV, kMask, kPastKey, kPastValue, kNonpad, kInputs };
enum Output : size_t { kY, kPresentKey, kPresentValue, kScores };

// Sizes of one Request, however its inputs are laid out.
struct Sizes {
  int64_t batch, heads, kv_heads, queries, new_keys, past_keys, head_dim, value_dim;
  int64_t keys() const { return past_keys + new_keys; }
};

class OnnxAttention final : public Op {
 public:
  explicit OnnxAttention(const NodeSpec& spec)
      : kernels_(attention_kernels_for(spec.isa, Precision::kF32)),
        heads_(spec.int_or("q_num_heads", 0)),
        kv_heads_(spec.int_or("kv_num_heads", 0)),
        scale_(spec.float_or("scale", 0.0f)),
        softcap_(spec.float_or("softcap", 0.0f)),
        causal_(spec.int_or("is_causal", 0) != 0),
        caches_(spec.has_input(kPastKey)) {
    for (const char* window : {"left_window_size", "right_window_size"}) {
      if (spec.int_or(window, -1) != -1) spec.unsupported(str("attribute '", window, "'"));
    }
    if (spec.has("scale") && scale_ == 0.0f) spec.unsupported("a scale of 0");
    if (spec.int_or("softmax_precision", 1) != 1) {
      spec.unsupported("a softmax_precision that is not 1 (float32)");
    }
    if (spec.output_dtypes.size() > kScores && spec.output_dtypes[kScores] != DType::kNone) {
      spec.unsupported("output qk_matmul_output");
    }
    for (size_t i : {kQ, kK, kV, kPastKey, kPastValue}) {
      if (i <= kV && !spec.has_input(i)) spec.invalid(str("input ", i, " is missing"));
      if (spec.has_input(i) && spec.input_dtypes[i] != DType::kF32) {
        spec.unsupported(str("no kernel for ", name_of(spec.input_dtypes[i])));
      }
    }
    if (spec.has_input(kPastKey) != spec.has_input(kPastValue)) {
      spec.invalid("past_key and past_value come together");
    }
    if (caches_ && spec.has_input(kNonpad)) {
      spec.unsupported("nonpad_kv_seqlen together with past_key");
    }
    if (spec.has_input(kMask) && spec.input_dtypes[kMask] != DType::kF32 &&
        spec.input_dtypes[kMask] != DType::kBool) {
      spec.unsupported(
          str("a mask of ", name_of(spec.input_dtypes[kMask]), ", only float32 and bool are"));
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Sizes s = sizes(inputs);
    problem_of(inputs, s);  // for its checks
    outputs[kY] = inputs[kQ].shape.rank() == 4 ? Shape{s.batch, s.heads, s.queries, s.value_dim}
                                               : Shape{s.batch, s.queries, s.heads * s.value_dim};
    if (outputs.size() > kPresentKey) {
      outputs[kPresentKey] = {s.batch, s.kv_heads, s.keys(), s.head_dim};
    }
    if (outputs.size() > kPresentValue) {
      outputs[kPresentValue] = {s.batch, s.kv_heads, s.keys(), s.value_dim};
    }
  }

  void run(const OpRun& run) const override {
    auto requests = static_cast<int64_t>(run.requests());
    std::span problems(run.scratch_of<AttentionProblem>(requests), run.requests());
    float* keys = present_scratch(run, kPresentKey);
    float* values = present_scratch(run, kPresentValue);
    for (size_t r = 0; r < run.requests(); ++r) {
      ConstTensorView views[kInputs];
      for (size_t i = 0; i < kInputs; ++i) {
        if (run.has_input(i)) views[i] = run.input(i).view(r);
      }
      Sizes s = sizes(views);
      AttentionProblem& p = problems[r] = problem_of(views, s);
      p.output = run.output(kY).view(r).as<float>();
      keys = join(run, r, s, kPresentKey, p.k, views[kPastKey], s.head_dim, keys);
      values = join(run, r, s, kPresentValue, p.v, views[kPastValue], s.value_dim, values);
    }
    run_attention(run, kernels_, problems);
  }

 private:
  [[noreturn]] static void bad_shape(const char* input, const Shape& got,
                                     const std::string& expected) {
    fail(ErrorKind::kShapeMismatch, input, ": got ", to_string(got), ", expected ", expected);
  }

  Sizes sizes(InputViews inputs) const {
    const Shape& q = inputs[kQ].shape;
    const Shape& k = inputs[kK].shape;
    const Shape& v = inputs[kV].shape;
    bool flat = q.rank() == 3;
    if (q.rank() != 3 && q.rank() != 4) bad_shape("Q", q, "3 or 4 dims");
    if (flat && (heads_ < 1 || kv_heads_ < 1)) {
      fail(ErrorKind::kInvalidModel, "q_num_heads: got ", heads_, " and kv_num_heads ", kv_heads_,
           ", expected both with Q of 3 dims");
    }
    if (k.rank() != q.rank()) bad_shape("K", k, str(q.rank(), " dims"));
    if (v.rank() != q.rank()) bad_shape("V", v, str(q.rank(), " dims"));
    Sizes s{.batch = q[0],
            .heads = flat ? heads_ : q[1],
            .kv_heads = flat ? kv_heads_ : k[1],
            .queries = q[flat ? 1 : 2],
            .new_keys = k[flat ? 1 : 2],
            .past_keys = 0,
            .head_dim = flat ? q[2] / heads_ : q[3],
            .value_dim = flat ? v[2] / kv_heads_ : v[3]};
    if (s.kv_heads < 1 || s.heads % s.kv_heads != 0) {
      bad_shape("K", k, str("a divisor of ", s.heads, " as its heads, got ", s.kv_heads));
    }
    check("Q", q, s.batch, s.heads, s.queries, s.head_dim);
    check("K", k, s.batch, s.kv_heads, s.new_keys, s.head_dim);
    check("V", v, s.batch, s.kv_heads, s.new_keys, s.value_dim);
    if (caches_) {
      const Shape& past = inputs[kPastKey].shape;
      if (past.rank() != 4) bad_shape("past_key", past, "4 dims");
      s.past_keys = past[2];
      check("past_key", past, s.batch, s.kv_heads, s.past_keys, s.head_dim);
      if (inputs[kPastValue].shape.rank() != 4) {
        bad_shape("past_value", inputs[kPastValue].shape, "4 dims");
      }
      check("past_value", inputs[kPastValue].shape, s.batch, s.kv_heads, s.past_keys, s.value_dim);
    }
    return s;
  }

  // `shape` must be [batch, heads, rows, width], or [batch, rows, heads * width] if it has 3 dims.
  static void check(const char* input, const Shape& shape, int64_t batch, int64_t heads,
                    int64_t rows, int64_t width) {
    Shape expected =
        shape.rank() == 4 ? Shape{batch, heads, rows, width} : Shape{batch, rows, heads * width};
    if (shape != expected) bad_shape(input, shape, to_string(expected));
  }

  static AttentionRows rows(const ConstTensorView& x, int64_t heads, int64_t rows, int64_t width) {
    if (x.shape.rank() == 4) return {x.data, false, heads * rows * width, rows * width, width};
    return {x.data, false, rows * heads * width, width, heads * width};
  }

  // Everything but the output, with K and V as if there were no cache.
  AttentionProblem problem_of(InputViews inputs, const Sizes& s) const {
    AttentionProblem p;
    p.batch = s.batch;
    p.heads = s.heads;
    p.kv_heads = s.kv_heads;
    p.queries = s.queries;
    p.keys = s.keys();
    p.head_dim = s.head_dim;
    p.value_dim = s.value_dim;
    p.q = rows(inputs[kQ], s.heads, s.queries, s.head_dim);
    p.k = rows(inputs[kK], s.kv_heads, s.new_keys, s.head_dim);
    p.v = rows(inputs[kV], s.kv_heads, s.new_keys, s.value_dim);
    p.o = rows({DType::kF32, inputs[kQ].shape, nullptr}, s.heads, s.queries, s.value_dim);
    p.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    p.softcap = softcap_;
    p.causal = causal_;
    p.causal_offset = s.past_keys;
    p.zero_if_empty = true;
    auto present = [&](size_t i) { return inputs.size() > i && inputs[i].present(); };
    if (present(kMask)) {
      set_mask_strides(inputs[kMask].shape, true, p);
      if (inputs[kMask].dtype == DType::kF32) p.mask = inputs[kMask].as<float>();
      if (inputs[kMask].dtype == DType::kBool) p.keep = inputs[kMask].as<bool>();
    }
    if (present(kNonpad)) {
      if (inputs[kNonpad].elements() != s.batch) {
        bad_shape("nonpad_kv_seqlen", inputs[kNonpad].shape, str("[", s.batch, "]"));
      }
      p.valid_keys = inputs[kNonpad].as<int64_t>();
    }
    return p;
  }

  // Room for all Requests' keys (values) with their past in front, if there is a past and no
  // output that holds them.
  float* present_scratch(const OpRun& run, size_t output) const {
    if (!caches_ || run.has_output(output)) return nullptr;
    size_t past = output == kPresentKey ? kPastKey : kPastValue;
    size_t fresh = output == kPresentKey ? kK : kV;
    int64_t elements = 0;
    for (size_t r = 0; r < run.requests(); ++r) {
      elements += run.input(past).view(r).elements() + run.input(fresh).view(r).elements();
    }
    return run.scratch_of<float>(elements);
  }

  // Writes past and new rows to the output, or to `scratch` if nobody wants the output, and makes
  // `rows` point there. Returns the scratch that is left.
  float* join(const OpRun& run, size_t r, const Sizes& s, size_t output, AttentionRows& rows,
              const ConstTensorView& past, int64_t width, float* scratch) const {
    bool wanted = run.has_output(output);
    if (!wanted && !caches_) return scratch;
    float* to = wanted ? run.output(output).view(r).as<float>() : scratch;
    run.parallel_ranges(s.batch * s.kv_heads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        float* head = to + i * s.keys() * width;
        auto bytes = static_cast<size_t>(width) * sizeof(float);
        if (s.past_keys > 0) {
          std::memcpy(head, past.as<float>() + i * s.past_keys * width,
                      static_cast<size_t>(s.past_keys) * bytes);
        }
        for (int64_t k = 0; k < s.new_keys && width > 0; ++k) {
          std::memcpy(head + (s.past_keys + k) * width,
                      rows.at(i / s.kv_heads, i % s.kv_heads, k).rows, bytes);
        }
      }
    });
    rows = {to, false, s.kv_heads * s.keys() * width, s.keys() * width, width};
    return wanted ? scratch : to + s.batch * s.kv_heads * s.keys() * width;
  }

  const AttentionKernels& kernels_;
  int64_t heads_;     // 0 where Q's shape says it
  int64_t kv_heads_;  // likewise
  float scale_;       // 0 for 1 / sqrt(head_dim)
  float softcap_;
  bool causal_;
  bool caches_;  // has past_key and past_value
};

}  // namespace

std::unique_ptr<Op> make_onnx_attention(const NodeSpec& spec) {
  return std::make_unique<OnnxAttention>(spec);
}

}  // namespace headrace
