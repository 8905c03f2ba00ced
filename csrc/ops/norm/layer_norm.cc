// LayerNormalization and RMSNormalization: every row on its own, rows of all Requests as one block.
#include <cmath>

#include "core/strided.h"
#include "core/visit.h"
#include "ops/norm/room.h"
#include "ops/rows.h"

namespace headrace {
namespace {

class RowNorm : public Op {
 public:
  RowNorm(const NodeSpec& spec, bool centered)
      : centered_(centered),
        axis_(spec.int_or("axis", -1)),
        epsilon_(spec.float_or("epsilon", 1e-5f)) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    int axis = normalize_axis(axis_, x.rank());
    int64_t n = x.elements(axis, x.rank());
    check_elements("Scale", inputs[1].shape, n);
    if (inputs.size() > 2 && inputs[2].present()) check_elements("B", inputs[2].shape, n);
    outputs[0] = x;
    for (size_t o = 1; o < outputs.size(); ++o) {
      outputs[o] = x;
      for (int i = axis; i < x.rank(); ++i) outputs[o][i] = 1;
    }
  }
  bool can_overwrite(size_t input) const override { return input == 0; }
  bool row_wise() const override { return axis_ == -1; }

  void run(const OpRun& run) const override {
    int64_t elements = run.output(0).elements();
    if (elements == 0) return;
    for_rows(
        run, min_rows_of(row_elements(run.output(0).shape(0))),
        [&](size_t r) {
          const Shape& shape = run.output(0).shape(r);
          return shape.elements(0, normalize_axis(axis_, shape.rank()));
        },
        [&](size_t r, int64_t begin, int64_t end) { rows(run, r, begin, end); });
  }

 protected:
  // Rows [begin, end) of one Request.
  virtual void rows(const OpRun& run, size_t r, int64_t begin, int64_t end) const = 0;

  int64_t row_elements(const Shape& shape) const {
    return shape.elements(normalize_axis(axis_, shape.rank()), shape.rank());
  }
  template <class T>
  static const T* input(const OpRun& run, size_t i, size_t r) {
    return run.has_input(i) ? static_cast<const T*>(run.input(i).view(r).data) : nullptr;
  }
  template <class T>
  static T* output(const OpRun& run, size_t o, size_t r) {
    return run.has_output(o) ? static_cast<T*>(run.output(o).view(r).data) : nullptr;
  }

  bool centered_;
  int64_t axis_;
  float epsilon_;
};

class VectorRowNorm final : public RowNorm {
 public:
  VectorRowNorm(const NodeSpec& spec, bool centered)
      : RowNorm(spec, centered), kernels_(HEADRACE_KERNELS(spec.isa, norm_kernels)) {}

 private:
  void rows(const OpRun& run, size_t r, int64_t begin, int64_t end) const override {
    int64_t n = row_elements(run.output(0).shape(r));
    const float* x = input<float>(run, 0, r) + begin * n;
    float* y = output<float>(run, 0, r) + begin * n;
    const float* scale = input<float>(run, 1, r);
    if (!centered_) return kernels_.rms_norm(x, y, end - begin, n, scale, epsilon_);
    float* mean = output<float>(run, 1, r);
    float* inv = output<float>(run, 2, r);
    kernels_.layer_norm(x, y, end - begin, n, scale, input<float>(run, 2, r), epsilon_,
                        mean ? mean + begin : nullptr, inv ? inv + begin : nullptr);
  }

  const NormKernels& kernels_;
};

// The other float dtypes, in double.
template <class T>
class ScalarRowNorm final : public RowNorm {
 public:
  using RowNorm::RowNorm;

 private:
  void rows(const OpRun& run, size_t r, int64_t begin, int64_t end) const override {
    int64_t n = row_elements(run.output(0).shape(r));
    for (int64_t row = begin; row < end; ++row) {
      const T* x = input<T>(run, 0, r) + row * n;
      double mean = 0;
      for (int64_t i = 0; i < n && centered_; ++i) mean += static_cast<double>(x[i]);
      mean /= static_cast<double>(n);
      double variance = 0;
      for (int64_t i = 0; i < n; ++i) {
        double d = static_cast<double>(x[i]) - mean;
        variance += d * d;
      }
      double inv = 1.0 / std::sqrt(variance / static_cast<double>(n) + epsilon_);
      const T* scale = input<T>(run, 1, r);
      const T* bias = input<T>(run, 2, r);
      T* y = output<T>(run, 0, r) + row * n;
      for (int64_t i = 0; i < n; ++i) {
        double value = (static_cast<double>(x[i]) - mean) * inv * static_cast<double>(scale[i]);
        y[i] = static_cast<T>(value + (bias ? static_cast<double>(bias[i]) : 0.0));
      }
      if (float* means = output<float>(run, 1, r)) means[row] = static_cast<float>(mean);
      if (float* invs = output<float>(run, 2, r)) invs[row] = static_cast<float>(inv);
    }
  }
};

}  // namespace

std::unique_ptr<Op> make_layer_norm(const NodeSpec& spec) {
  bool centered = spec.op == "LayerNormalization";
  if (spec.int_or("stash_type", 1) != 1) {
    spec.unsupported(str("stash_type ", spec.int_or("stash_type", 1), ", only 1 (float32) is"));
  }
  require_one_dtype(spec, spec.inputs());
  for (size_t o = 1; o < spec.output_dtypes.size(); ++o) {
    if (spec.output_dtypes[o] != DType::kNone && spec.output_dtypes[o] != DType::kF32) {
      spec.unsupported(str("Mean or InvStdDev as ", name_of(spec.output_dtypes[o])));
    }
  }
  DType dtype = spec.input_dtypes.at(0);
  if (dtype == DType::kF32) return std::make_unique<VectorRowNorm>(spec, centered);
  std::unique_ptr<Op> op;
  visit_dtype(Floats{}, dtype,
              [&]<class T>() { op = std::make_unique<ScalarRowNorm<T>>(spec, centered); });
  if (!op) spec.unsupported(str("no kernel for ", name_of(dtype)));
  return op;
}

}  // namespace headrace
