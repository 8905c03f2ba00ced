// Einsum over up to three operands, by plain summation in one fixed order.
#include <cctype>

#include "core/strided.h"
#include "core/visit.h"
#include "ops/node_inputs.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

constexpr int kMaxOperands = 3;
constexpr int kLetters = 52;
constexpr int kLabels =
    kLetters + kMaxRank;  // letters, then the axes of an ellipsis from the right
constexpr int kEllipsis = -1;

struct EinsumLoop {
  const void* in[kMaxOperands];
  void* out;
  const Nest& outputs;
  const Nest& sums;
  int operands;
};

template <class T>
void sum_products(const EinsumLoop& loop) {
  using C = ComputeType<T>;
  T* to = static_cast<T*>(loop.out);
  const Nest& outputs = loop.outputs;
  const Nest& sums = loop.sums;
  outputs.walk(0, outputs.outer(), [&](const int64_t* at) {
    for (int64_t i = 0; i < outputs.inner(); ++i) {
      C total = C(0);
      sums.walk(0, sums.outer(), [&](const int64_t* along) {
        for (int64_t j = 0; j < sums.inner(); ++j) {
          C product = C(1);
          for (int p = 0; p < loop.operands; ++p) {
            int64_t offset =
                at[p] + i * outputs.inner_stride(p) + along[p] + j * sums.inner_stride(p);
            product = static_cast<C>(product * C(static_cast<const T*>(loop.in[p])[offset]));
          }
          total = static_cast<C>(total + product);
        }
      });
      *to++ = static_cast<T>(total);
    }
  });
}

class Einsum : public PerRequestOp {
 public:
  explicit Einsum(const NodeSpec& spec) {
    parse(spec);
    for (size_t i = 1; i < spec.inputs(); ++i) {
      if (spec.input_dtypes[i] != spec.input_dtypes[0]) unsupported_dtype(spec, i);
    }
    bool known = visit_dtype(Types<float, double, Half, BFloat16, uint32_t, uint64_t>{},
                             spec.input_dtypes.at(0), [&]<class T>() { loop_ = sum_products<T>; });
    // Two's complement: unsigned arithmetic gives the bits of signed, without overflow.
    if (spec.input_dtypes[0] == DType::kI32) loop_ = sum_products<uint32_t>;
    if (spec.input_dtypes[0] == DType::kI64) loop_ = sum_products<uint64_t>;
    if (!known && loop_ == nullptr) unsupported_dtype(spec, 0);
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Dims dims = bind(inputs);
    outputs[0] = {};
    for (int label : output_) {
      if (label == kEllipsis) {
        for (int e = dims.ellipsis - 1; e >= 0; --e) outputs[0].push_back(dims.of[kLetters + e]);
      } else {
        outputs[0].push_back(dims.of[label]);
      }
    }
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    Dims dims = bind(inputs);
    int order[kLabels];
    int kept = 0;
    bool is_output[kLabels] = {};
    for (int label : output_) {
      if (label != kEllipsis) {
        order[kept++] = label;
        continue;
      }
      for (int e = dims.ellipsis - 1; e >= 0; --e) order[kept++] = kLetters + e;
    }
    for (int i = 0; i < kept; ++i) is_output[order[i]] = true;
    Strides by_label[kMaxOperands][2];  // over the outputs' labels and the summed ones
    Shape out_dims, sum_dims;
    for (int i = 0; i < kept; ++i) add_axis(dims, inputs, order[i], 0, out_dims, by_label);
    for (int label = 0; label < kLabels; ++label) {
      if (dims.of[label] >= 0 && !is_output[label]) {
        add_axis(dims, inputs, label, 1, sum_dims, by_label);
      }
    }
    Strides out_strides[kMaxOperands], sum_strides[kMaxOperands];
    for (size_t p = 0; p < inputs.size(); ++p) {
      out_strides[p] = by_label[p][0];
      sum_strides[p] = by_label[p][1];
    }
    Nest out_nest(out_dims, {out_strides, inputs.size()});
    Nest sum_nest(sum_dims, {sum_strides, inputs.size()});
    EinsumLoop loop{{}, outputs[0].data, out_nest, sum_nest, static_cast<int>(inputs.size())};
    for (size_t p = 0; p < inputs.size(); ++p) loop.in[p] = inputs[p].data;
    loop_(loop);
  }

 private:
  struct Dims {
    int64_t of[kLabels];  // -1: not used
    int ellipsis = 0;     // axes of the longest
  };

  static int label_of(char c) { return c >= 'a' ? 26 + (c - 'a') : c - 'A'; }

  static std::vector<int> parse_term(const NodeSpec& spec, std::string_view term) {
    std::vector<int> labels;
    for (size_t i = 0; i < term.size(); ++i) {
      if (term.substr(i, 3) == "...") {
        labels.push_back(kEllipsis);
        i += 2;
      } else if (std::isalpha(static_cast<unsigned char>(term[i])) != 0) {
        labels.push_back(label_of(term[i]));
      } else {
        spec.invalid(str("got '", term[i], "' in the equation"));
      }
    }
    return labels;
  }

  void parse(const NodeSpec& spec) {
    std::string equation = spec.string_or("equation", "");
    std::erase(equation, ' ');
    size_t arrow = equation.find("->");
    std::string_view inputs = std::string_view(equation).substr(0, arrow);
    for (size_t begin = 0; begin <= inputs.size();) {
      size_t end = std::min(inputs.find(',', begin), inputs.size());
      terms_.push_back(parse_term(spec, inputs.substr(begin, end - begin)));
      begin = end + 1;
    }
    if (terms_.size() != spec.inputs()) spec.invalid("the equation has another number of operands");
    if (terms_.size() > kMaxOperands)
      spec.unsupported(str("more than ", kMaxOperands, " operands"));
    if (arrow != std::string::npos) {
      output_ = parse_term(spec, std::string_view(equation).substr(arrow + 2));
      return;
    }
    // Without an arrow: the ellipsis, then the labels that stand once, in alphabetical order.
    int uses[kLetters] = {};
    bool ellipsis = false;
    for (const auto& term : terms_) {
      for (int label : term) label == kEllipsis ? void(ellipsis = true) : void(++uses[label]);
    }
    if (ellipsis) output_.push_back(kEllipsis);
    for (int label = 0; label < kLetters; ++label) {
      if (uses[label] == 1) output_.push_back(label);
    }
  }

  // The label of each axis of one operand.
  void axis_labels(const Shape& shape, size_t operand, int* labels) const {
    const std::vector<int>& term = terms_[operand];
    bool ellipsis = std::ranges::count(term, kEllipsis) > 0;
    int named = static_cast<int>(term.size()) - (ellipsis ? 1 : 0);
    if (ellipsis ? shape.rank() < named : shape.rank() != named) {
      fail(ErrorKind::kShapeMismatch, "got operand ", operand, " of shape ", to_string(shape),
           ", expected ", named, " dims");
    }
    int axis = 0;
    for (int label : term) {
      if (label != kEllipsis) {
        labels[axis++] = label;
        continue;
      }
      for (int e = shape.rank() - named - 1; e >= 0; --e) labels[axis++] = kLetters + e;
    }
  }

  Dims bind(InputViews inputs) const {
    Dims dims;
    std::ranges::fill(dims.of, -1);
    for (size_t p = 0; p < inputs.size(); ++p) {
      int labels[kMaxRank];
      axis_labels(inputs[p].shape, p, labels);
      for (int axis = 0; axis < inputs[p].shape.rank(); ++axis) {
        int64_t& dim = dims.of[labels[axis]];
        int64_t length = inputs[p].shape[axis];
        if (dim > 1 && length != 1 && length != dim) {
          fail(ErrorKind::kShapeMismatch, "got lengths ", dim, " and ", length,
               " under one label, expected equal ones");
        }
        if (dim == -1 || dim == 1) dim = length;
        if (labels[axis] >= kLetters) {
          dims.ellipsis = std::max(dims.ellipsis, labels[axis] - kLetters + 1);
        }
      }
    }
    return dims;
  }

  void add_axis(const Dims& dims, InputViews inputs, int label, int side, Shape& shape,
                Strides by_label[kMaxOperands][2]) const {
    for (size_t p = 0; p < inputs.size(); ++p) {
      int labels[kMaxRank];
      axis_labels(inputs[p].shape, p, labels);
      Strides dense = strides_of(inputs[p].shape);
      for (int axis = 0; axis < inputs[p].shape.rank(); ++axis) {
        // A label that stands twice steps along the diagonal.
        if (labels[axis] == label && inputs[p].shape[axis] != 1) {
          by_label[p][side][shape.rank()] += dense[axis];
        }
      }
    }
    shape.push_back(dims.of[label]);
  }

  std::vector<std::vector<int>> terms_;
  std::vector<int> output_;
  void (*loop_)(const EinsumLoop&) = nullptr;
};

std::unique_ptr<Op> make_einsum(const NodeSpec& spec) {
  return std::make_unique<Einsum>(spec);
}

}  // namespace

void register_einsum_ops(OpRegistry& registry) {
  registry.add("Einsum", make_einsum);
}

}  // namespace headrace
