// LpNormalization and LRN, element by element: models that use them spend their time elsewhere.
#include <cmath>

#include "core/strided.h"
#include "core/visit.h"
#include "ops/norm/room.h"
#include "ops/rows.h"

namespace headrace {
namespace {

constexpr int64_t kMinElements = 4096;  // worth a thread

// Base of ops that work along one axis of a tensor seen as outer x n x inner.
class AlongAxis : public Op {
 public:
  explicit AlongAxis(int64_t axis) : axis_(axis) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    normalize_axis(axis_, inputs[0].shape.rank());
    outputs[0] = inputs[0].shape;
  }

  void run(const OpRun& run) const override {
    if (run.output(0).elements() == 0) return;
    auto rows_of = [&](size_t r) {
      const Shape& shape = run.output(0).shape(r);
      return shape.elements(0, normalize_axis(axis_, shape.rank()));
    };
    int64_t rows = 0;
    for (size_t r = 0; r < run.requests(); ++r) rows += rows_of(r);
    for_rows(run, min_rows_of(run.output(0).elements() / rows, kMinElements), rows_of,
             [&](size_t r, int64_t begin, int64_t end) {
               const Shape& shape = run.output(0).shape(r);
               int axis = normalize_axis(axis_, shape.rank());
               int64_t inner = shape.elements(axis + 1, shape.rank());
               for (int64_t row = begin; row < end; ++row) {
                 apply(run.input(0).view(r).data, run.output(0).view(r).data,
                       row * shape[axis] * inner, shape[axis], inner);
               }
             });
  }

 protected:
  // Element i of column j is at offset + i * inner + j.
  virtual void apply(const void* x, void* y, int64_t offset, int64_t n, int64_t inner) const = 0;

 private:
  int64_t axis_;
};

template <class T>
class LpNorm final : public AlongAxis {
 public:
  LpNorm(int64_t axis, int64_t p) : AlongAxis(axis), p_(p) {}
  bool can_overwrite(size_t input) const override { return input == 0; }

 private:
  void apply(const void* in, void* out, int64_t offset, int64_t n, int64_t inner) const override {
    for (int64_t j = 0; j < inner; ++j) {
      const T* x = static_cast<const T*>(in) + offset + j;
      T* y = static_cast<T*>(out) + offset + j;
      double norm = 0;
      for (int64_t i = 0; i < n; ++i) {
        auto value = static_cast<double>(x[i * inner]);
        norm += p_ == 1 ? std::abs(value) : value * value;
      }
      if (p_ == 2) norm = std::sqrt(norm);
      for (int64_t i = 0; i < n; ++i) {
        auto value = static_cast<double>(x[i * inner]);
        y[i * inner] = static_cast<T>(norm == 0 ? 0.0 : value / norm);
      }
    }
  }

  int64_t p_;
};

// y = x / (bias + alpha / size * sum of squares over `size` channels around)^beta
template <class T>
class Lrn final : public AlongAxis {
 public:
  explicit Lrn(const NodeSpec& spec)
      : AlongAxis(1),
        size_(spec.int_or("size", 0)),
        alpha_(spec.float_or("alpha", 1e-4f)),
        beta_(spec.float_or("beta", 0.75f)),
        bias_(spec.float_or("bias", 1.0f)) {
    if (size_ < 1) spec.invalid(str("attribute 'size': got ", size_, ", expected at least 1"));
  }

 private:
  void apply(const void* in, void* out, int64_t offset, int64_t n, int64_t inner) const override {
    const T* x = static_cast<const T*>(in) + offset;
    T* y = static_cast<T*>(out) + offset;
    for (int64_t c = 0; c < n; ++c) {
      int64_t begin = std::max<int64_t>(0, c - (size_ - 1) / 2);
      int64_t end = std::min(n, c + size_ / 2 + 1);
      for (int64_t j = 0; j < inner; ++j) {
        double squares = 0;
        for (int64_t i = begin; i < end; ++i) {
          auto value = static_cast<double>(x[i * inner + j]);
          squares += value * value;
        }
        double divisor = std::pow(bias_ + alpha_ / static_cast<double>(size_) * squares, beta_);
        y[c * inner + j] = static_cast<T>(static_cast<double>(x[c * inner + j]) / divisor);
      }
    }
  }

  int64_t size_;
  double alpha_;
  double beta_;
  double bias_;
};

}  // namespace

std::unique_ptr<Op> make_lp_norm(const NodeSpec& spec) {
  int64_t p = spec.int_or("p", 2);
  if (p != 1 && p != 2) spec.invalid(str("attribute 'p': got ", p, ", expected 1 or 2"));
  std::unique_ptr<Op> op;
  visit_dtype(Floats{}, spec.input_dtypes.at(0),
              [&]<class T>() { op = std::make_unique<LpNorm<T>>(spec.int_or("axis", -1), p); });
  if (!op) spec.unsupported(str("no kernel for ", name_of(spec.input_dtypes[0])));
  return op;
}

std::unique_ptr<Op> make_lrn(const NodeSpec& spec) {
  std::unique_ptr<Op> op;
  visit_dtype(Floats{}, spec.input_dtypes.at(0),
              [&]<class T>() { op = std::make_unique<Lrn<T>>(spec); });
  if (!op) spec.unsupported(str("no kernel for ", name_of(spec.input_dtypes[0])));
  return op;
}

}  // namespace headrace
