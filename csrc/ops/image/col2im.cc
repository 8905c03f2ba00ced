// Col2Im: adds up overlapping blocks, each a column, into an image.
#include "ops/image/image.h"

namespace headrace {
namespace {

class Col2Im : public PerRequestOp {
 public:
  explicit Col2Im(const NodeSpec& spec)
      : image_(spec, "", 1),
        block_(spec, "", 2),
        dilations_(spec.ints("dilations")),
        pads_(spec.ints("pads")),
        strides_(spec.ints("strides")) {
    require_inputs(spec, 3);
    if (spec.input_dtypes[0] != DType::kF32) unsupported_dtype(spec, 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    std::span<const int64_t> image = image_.get(inputs);
    std::span<const int64_t> block = block_.get(inputs);
    size_t n = image.size();
    bool fits = x.rank() == 3 && block.size() == n && n + 2 <= kMaxRank && agree(dilations_, n) &&
                agree(strides_, n) && agree(pads_, 2 * n);
    int64_t per_block = 1, columns = 1;
    for (size_t d = 0; fits && d < n; ++d) {
      fits = block[d] > 0 && at(dilations_, d, 1) > 0 && at(strides_, d, 1) > 0;
      per_block *= block[d];
      if (fits) columns *= std::max<int64_t>(0, steps(image[d], block[d], d, n));
    }
    if (!fits || x[1] % per_block != 0 || x[2] != columns) {
      fail(ErrorKind::kShapeMismatch, "got columns of shape ", to_string(x),
           ", expected [N, C * block, ", columns, "] with blocks of ", per_block);
    }
    outputs[0] = {x[0], x[1] / per_block};
    for (int64_t dim : image) outputs[0].push_back(dim);
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& out = outputs[0].shape;
    std::span<const int64_t> block = block_.get(inputs);
    size_t n = block.size();
    float* to = outputs[0].as<float>();
    std::fill_n(to, out.elements(), 0.0f);
    int64_t pixels = out.elements(2, out.rank());
    int64_t per_block = out[1] == 0 ? 1 : x[1] / out[1];
    const float* from = inputs[0].as<float>();
    for (int64_t plane = 0; plane < x[0] * out[1]; ++plane, to += pixels) {
      for (int64_t b = 0; b < per_block; ++b) {
        for (int64_t c = 0; c < x[2]; ++c) {
          float value = *from++;
          int64_t in_block = b, column = c, target = 0, step = 1;
          bool inside = true;
          for (size_t d = n; d-- > 0;) {
            int64_t length = out[static_cast<int>(d) + 2];
            int64_t columns = steps(length, block[d], d, n);
            int64_t i = column % columns * at(strides_, d, 1) - at(pads_, d, 0) +
                        in_block % block[d] * at(dilations_, d, 1);
            inside = inside && i >= 0 && i < length;
            target += i * step;
            step *= length;
            column /= columns;
            in_block /= block[d];
          }
          if (inside) to[target] += value;
        }
      }
    }
  }

 private:
  static bool agree(const std::vector<int64_t>& list, size_t n) {
    return list.empty() || list.size() == n;
  }
  static int64_t at(const std::vector<int64_t>& list, size_t i, int64_t fallback) {
    return list.empty() ? fallback : list[i];
  }
  int64_t steps(int64_t length, int64_t block, size_t d, size_t n) const {
    int64_t padded = length + at(pads_, d, 0) + at(pads_, d + n, 0);
    return (padded - at(dilations_, d, 1) * (block - 1) - 1) / at(strides_, d, 1) + 1;
  }

  IntList image_;
  IntList block_;
  std::vector<int64_t> dilations_;
  std::vector<int64_t> pads_;
  std::vector<int64_t> strides_;
};

std::unique_ptr<Op> make_col2im(const NodeSpec& spec) {
  return std::make_unique<Col2Im>(spec);
}

}  // namespace

void register_col2im(OpRegistry& registry) {
  registry.add("Col2Im", make_col2im);
}

}  // namespace headrace
