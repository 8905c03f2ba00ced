// Einsum, element by element: a loop over the labels of the output around a loop over the others.
#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <vector>

#include "ops/linear/linear.h"
#include "ops/linear/naive.h"

namespace headrace {
namespace {

constexpr int kMaxOperands = 8;
// 52 letters, and an id for each axis that an ellipsis may stand for, counted from the back.
constexpr int kEllipsisIds = 52;
constexpr int kIds = kEllipsisIds + kMaxRank;
constexpr int kEllipsis = -1;

using Term = std::vector<int>;  // label ids, kEllipsis for "..."

// The ids of one operand or of the output, ellipsis spelled out.
struct Labels {
  std::array<int8_t, kIds> ids;
  int count = 0;
  void add(int id) { ids[static_cast<size_t>(count++)] = static_cast<int8_t>(id); }
};

// How one Request's labels are walked.
struct Walk {
  std::array<int64_t, kIds> length;
  std::array<std::array<int64_t, kIds>, kMaxOperands> stride;
  Labels output;
  Labels summed;
};

int id_of(char c) {
  return c >= 'a' ? c - 'a' + 26 : c - 'A';
}

class Equation {
 public:
  explicit Equation(const NodeSpec& spec) {
    std::string text = spec.string_or("equation", "");
    std::erase_if(text, [](unsigned char c) { return std::isspace(c) != 0; });
    size_t arrow = text.find("->");
    std::string left = text.substr(0, arrow);
    size_t begin = 0;
    while (true) {
      size_t comma = left.find(',', begin);
      operands_.push_back(parse(spec, text, left.substr(begin, comma - begin)));
      if (comma == std::string::npos) break;
      begin = comma + 1;
    }
    if (operands_.size() != spec.inputs() || operands_.size() > kMaxOperands) {
      spec.unsupported(str("got equation '", text, "' and ", spec.inputs(),
                           " inputs, expected one per term and at most ", kMaxOperands));
    }
    output_ =
        arrow == std::string::npos ? implicit_output() : parse(spec, text, text.substr(arrow + 2));
    for (int id : output_) {
      bool once = std::ranges::count(output_, id) == 1;
      bool known = id == kEllipsis || std::ranges::any_of(operands_, [&](const Term& term) {
                     return std::ranges::count(term, id) > 0;
                   });
      if (!once || !known) spec.invalid(str("got equation '", text, "' with an unfit output"));
    }
  }

  Walk walk(InputViews inputs) const {
    Walk w;
    w.length.fill(1);
    int ellipsis_rank = 0;
    for (size_t i = 0; i < operands_.size(); ++i) {
      add_operand(operands_[i], inputs[i].shape, w.stride[i], w.length, ellipsis_rank);
    }
    std::array<bool, kIds> in_output{};
    for (int id : output_) {
      if (id != kEllipsis) w.output.add(id);
      for (int axis = ellipsis_rank; id == kEllipsis && axis > 0; --axis) {
        w.output.add(kEllipsisIds + axis - 1);
      }
    }
    for (int i = 0; i < w.output.count; ++i) {
      in_output[static_cast<size_t>(w.output.ids[static_cast<size_t>(i)])] = true;
    }
    for (int id = 0; id < kIds; ++id) {
      auto at = static_cast<size_t>(id);
      if (!in_output[at] && w.length[at] != 1) w.summed.add(id);
    }
    return w;
  }

  size_t operands() const { return operands_.size(); }

 private:
  static Term parse(const NodeSpec& spec, const std::string& text, const std::string& term) {
    Term ids;
    for (size_t i = 0; i < term.size(); ++i) {
      if (term.compare(i, 3, "...") == 0 && std::ranges::count(ids, kEllipsis) == 0) {
        ids.push_back(kEllipsis);
        i += 2;
      } else if (std::isalpha(static_cast<unsigned char>(term[i])) != 0) {
        ids.push_back(id_of(term[i]));
      } else {
        spec.invalid(str("got equation '", text, "', expected letters, '...', ',' and '->'"));
      }
    }
    return ids;
  }

  // Without an arrow: the ellipsis, then the labels that stand once, in the alphabet's order.
  Term implicit_output() const {
    Term all;
    for (const Term& term : operands_) all.insert(all.end(), term.begin(), term.end());
    Term output;
    if (std::ranges::count(all, kEllipsis) > 0) output.push_back(kEllipsis);
    for (int id = 0; id < kEllipsisIds; ++id) {
      if (std::ranges::count(all, id) == 1) output.push_back(id);
    }
    return output;
  }

  static void add_operand(const Term& term, const Shape& shape, std::array<int64_t, kIds>& stride,
                          std::array<int64_t, kIds>& length, int& ellipsis_rank) {
    stride.fill(0);
    bool has_ellipsis = std::ranges::count(term, kEllipsis) > 0;
    int letters = static_cast<int>(term.size()) - (has_ellipsis ? 1 : 0);
    int hidden = shape.rank() - letters;
    if (hidden < 0 || (hidden > 0 && !has_ellipsis)) {
      fail(ErrorKind::kShapeMismatch, "got an operand of shape ", to_string(shape), ", expected ",
           letters, " dims");
    }
    ellipsis_rank = std::max(ellipsis_rank, hidden);
    Strides dense = strides_of(shape);
    int axis = 0;
    auto take = [&](int id) {
      auto at = static_cast<size_t>(id);
      int64_t n = shape[axis];
      if (n != 1) {
        if (length[at] != 1 && length[at] != n) {
          fail(ErrorKind::kShapeMismatch, "got an operand of shape ", to_string(shape),
               ", expected a length of ", length[at], " along axis ", axis);
        }
        length[at] = n;
        stride[at] += dense[axis];
      }
      ++axis;
    };
    for (int id : term) {
      if (id != kEllipsis) take(id);
      for (int i = hidden; id == kEllipsis && i > 0; --i) take(kEllipsisIds + i - 1);
    }
  }

  std::vector<Term> operands_;
  Term output_;
};

template <class T>
class Einsum : public PerRequestOp {
 public:
  explicit Einsum(const NodeSpec& spec) : equation_(spec) {}

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Walk w = equation_.walk(inputs);
    for (int i = 0; i < w.output.count; ++i) {
      outputs[0].push_back(w.length[static_cast<size_t>(w.output.ids[static_cast<size_t>(i)])]);
    }
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    Walk w = equation_.walk(inputs);
    std::array<const T*, kMaxOperands> at{};
    for (size_t i = 0; i < equation_.operands(); ++i) at[i] = inputs[i].as<T>();
    T* y = outputs[0].as<T>();
    loop(w, w.output, 0, at, [&](auto& outer) {
      SumType<T> sum = 0;
      loop(w, w.summed, 0, outer, [&](auto& inner) {
        SumType<T> product = 1;
        for (size_t i = 0; i < equation_.operands(); ++i) {
          product *= static_cast<SumType<T>>(*inner[i]);
        }
        sum += product;
      });
      *y++ = static_cast<T>(sum);
    });
  }

 private:
  template <class Body>
  void loop(const Walk& w, const Labels& labels, int depth, std::array<const T*, kMaxOperands> at,
            const Body& body) const {
    if (depth == labels.count) return body(at);
    auto id = static_cast<size_t>(labels.ids[static_cast<size_t>(depth)]);
    for (int64_t i = 0; i < w.length[id]; ++i) {
      loop(w, labels, depth + 1, at, body);
      for (size_t o = 0; o < equation_.operands(); ++o) at[o] += w.stride[o][id];
    }
  }

  Equation equation_;
};

}  // namespace

std::unique_ptr<Op> make_einsum(const NodeSpec& spec) {
  if (spec.inputs() == 0) spec.invalid("got no inputs, expected at least one");
  for (DType dtype : spec.input_dtypes) {
    if (dtype != spec.input_dtypes[0]) spec.invalid("expected inputs of one dtype");
  }
  std::unique_ptr<Op> op;
  if (!visit_dtype(Numbers{}, spec.input_dtypes[0],
                   [&]<class T>() { op = std::make_unique<Einsum<T>>(spec); })) {
    spec.unsupported(str("got dtype ", name_of(spec.input_dtypes[0]), ", expected numbers"));
  }
  return op;
}

}  // namespace headrace
