// RNN, GRU and LSTM: sequences, directions and layouts around a cell.
#include "ops/recurrent/recurrent.h"

#include <cmath>

namespace headrace {
namespace {

float sigmoid(float x) {
  return 1 / (1 + std::exp(-x));
}
float tanh_of(float x) {
  return std::tanh(x);
}
float relu(float x) {
  return x < 0 ? 0 : x;
}

Activation activation_named(const NodeSpec& spec, const std::string& name) {
  if (name == "Sigmoid") return sigmoid;
  if (name == "Tanh") return tanh_of;
  if (name == "Relu") return relu;
  spec.unsupported(str("activation '", name, "'"));
}

class Recurrent : public Op {
 public:
  Recurrent(const NodeSpec& spec, const Cell& cell, std::vector<std::string> defaults)
      : cell_(cell),
        lstm_(spec.op == "LSTM"),
        batch_first_(spec.int_or("layout", 0) != 0),
        reset_last_(spec.int_or("linear_before_reset", 0) != 0) {
    std::string direction = spec.string_or("direction", "forward");
    if (direction != "forward" && direction != "reverse" && direction != "bidirectional") {
      spec.invalid(str("got direction '", direction, "'"));
    }
    directions_ = direction == "bidirectional" ? 2 : 1;
    first_reversed_ = direction == "reverse";
    for (std::string_view attribute : {"clip", "activation_alpha", "activation_beta"}) {
      if (spec.has(attribute)) spec.unsupported(str("attribute '", attribute, "'"));
    }
    if (spec.int_or("input_forget", 0) != 0) spec.unsupported("coupled input and forget gates");
    for (size_t i = 0; i < spec.inputs(); ++i) {
      DType wanted = i == 4 ? DType::kI32 : DType::kF32;
      if (spec.has_input(i) && spec.input_dtypes[i] != wanted) unsupported_dtype(spec, i);
    }
    std::vector<std::string> names = spec.strings("activations");
    size_t each = defaults.size();
    if (names.empty()) {
      for (int d = 0; d < directions_; ++d)
        names.insert(names.end(), defaults.begin(), defaults.end());
    }
    if (names.size() != each * static_cast<size_t>(directions_))
      spec.invalid("number of activations");
    for (size_t i = 0; i < names.size(); ++i) {
      activations_[i / each][i % each] = activation_named(spec, names[i]);
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    Sizes s = sizes(inputs);
    Shape all = batch_first_ ? Shape{s.batch, s.time, directions_, s.hidden}
                             : Shape{s.time, directions_, s.batch, s.hidden};
    Shape last = batch_first_ ? Shape{s.batch, directions_, s.hidden}
                              : Shape{directions_, s.batch, s.hidden};
    for (size_t o = 0; o < outputs.size(); ++o) outputs[o] = o == 0 ? all : last;
  }

  void run(const OpRun& run) const override {
    int64_t hidden = 0;
    for (size_t r = 0; r < run.requests(); ++r) hidden = std::max(hidden, run.input(2).shape(r)[2]);
    int64_t room = (cell_.gates + 3) * hidden;  // scratch of a step, h and c
    auto* scratch = run.scratch_of<float>(room * run.threads());
    run.parallel_ranges(static_cast<int64_t>(run.requests()), 1,
                        [&](int64_t begin, int64_t end, int thread) {
                          for (int64_t r = begin; r < end; ++r) {
                            run_one(run, static_cast<size_t>(r), scratch + thread * room);
                          }
                        });
  }

 private:
  struct Sizes {
    int64_t time, batch, in, hidden;
  };

  Sizes sizes(InputViews inputs) const {
    const Shape& x = inputs[0].shape;
    const Shape& w = inputs[1].shape;
    const Shape& r = inputs[2].shape;
    bool fits = x.rank() == 3 && r.rank() == 3 && w.rank() == 3;
    Sizes s{};
    if (fits) s = {x[batch_first_ ? 1 : 0], x[batch_first_ ? 0 : 1], x[2], r[2]};
    fits = fits && w == Shape{directions_, cell_.gates * s.hidden, s.in} &&
           r == Shape{directions_, cell_.gates * s.hidden, s.hidden};
    auto has = [&](size_t i) { return i < inputs.size() && inputs[i].present(); };
    int64_t states = directions_ * s.batch * s.hidden;
    fits = fits && (!has(3) || inputs[3].elements() == directions_ * 2 * cell_.gates * s.hidden) &&
           (!has(4) || inputs[4].elements() == s.batch) &&
           (!has(5) || inputs[5].elements() == states) &&
           (!has(6) || inputs[6].elements() == states) &&
           (!has(7) || inputs[7].elements() == directions_ * 3 * s.hidden);
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), ", W of ", to_string(w),
           " and R of ", to_string(r), ", expected shapes of ", directions_, " directions and ",
           cell_.gates, " gates that fit each other, the bias and the initial states");
    }
    for (int64_t b = 0; has(4) && b < s.batch; ++b) {
      int32_t length = inputs[4].as<int32_t>()[b];
      if (length < 0 || length > s.time) {
        fail(ErrorKind::kExecution, "got sequence length ", length, ", expected at most ", s.time);
      }
    }
    return s;
  }

  void run_one(const OpRun& run, size_t r, float* scratch) const {
    constexpr size_t kInputs = 8;
    ConstTensorView in[kInputs];
    for (size_t i = 0; i < std::min(kInputs, run.inputs()); ++i) {
      if (run.has_input(i)) in[i] = run.input(i).view(r);
    }
    Sizes s = sizes({in, std::min(kInputs, run.inputs())});
    float* out[3] = {};
    for (size_t o = 0; o < 3; ++o) {
      if (run.has_output(o)) out[o] = run.output(o).view(r).as<float>();
    }
    float* h = scratch + (cell_.gates + 1) * s.hidden;
    float* c = h + s.hidden;
    for (int64_t d = 0; d < directions_; ++d) {
      CellWeights weights = weights_of(in, s, d);
      bool reversed = first_reversed_ || d == 1;
      for (int64_t b = 0; b < s.batch; ++b) {
        int64_t state = (batch_first_ ? b * directions_ + d : d * s.batch + b) * s.hidden;
        load_state(in[5], state, s.hidden, h);
        load_state(in[6], state, s.hidden, c);
        int64_t length = in[4].present() ? in[4].as<int32_t>()[b] : s.time;
        for (int64_t t = 0; t < s.time; ++t) {
          int64_t at = reversed && t < length ? length - 1 - t : t;
          const float* x =
              in[0].as<float>() + (batch_first_ ? b * s.time + at : at * s.batch + b) * s.in;
          if (t < length) cell_.step(weights, activations_[d], reset_last_, x, h, c, scratch);
          if (out[0] == nullptr) continue;
          int64_t row = batch_first_ ? (b * s.time + at) * directions_ + d
                                     : (at * directions_ + d) * s.batch + b;
          if (t < length) {
            std::copy_n(h, s.hidden, out[0] + row * s.hidden);
          } else {
            std::fill_n(out[0] + row * s.hidden, s.hidden, 0.0f);
          }
        }
        if (out[1] != nullptr) std::copy_n(h, s.hidden, out[1] + state);
        if (out[2] != nullptr) std::copy_n(c, s.hidden, out[2] + state);
      }
    }
  }

  CellWeights weights_of(const ConstTensorView* in, const Sizes& s, int64_t d) const {
    int64_t rows = cell_.gates * s.hidden;
    return {.w = in[1].as<float>() + d * rows * s.in,
            .r = in[2].as<float>() + d * rows * s.hidden,
            .bias = in[3].present() ? in[3].as<float>() + d * 2 * rows : nullptr,
            .peephole = in[7].present() && lstm_ ? in[7].as<float>() + d * 3 * s.hidden : nullptr,
            .in = s.in,
            .hidden = s.hidden};
  }

  static void load_state(const ConstTensorView& initial, int64_t at, int64_t n, float* to) {
    if (initial.present()) {
      std::copy_n(initial.as<float>() + at, n, to);
    } else {
      std::fill_n(to, n, 0.0f);
    }
  }

  const Cell& cell_;
  bool lstm_;
  bool batch_first_;
  bool reset_last_;
  int64_t directions_ = 1;
  bool first_reversed_ = false;
  Activation activations_[2][3] = {};
};

std::unique_ptr<Op> make_rnn(const NodeSpec& spec) {
  return std::make_unique<Recurrent>(spec, rnn_cell(), std::vector<std::string>{"Tanh"});
}
std::unique_ptr<Op> make_gru(const NodeSpec& spec) {
  return std::make_unique<Recurrent>(spec, gru_cell(), std::vector<std::string>{"Sigmoid", "Tanh"});
}
std::unique_ptr<Op> make_lstm(const NodeSpec& spec) {
  return std::make_unique<Recurrent>(spec, lstm_cell(),
                                     std::vector<std::string>{"Sigmoid", "Tanh", "Tanh"});
}

}  // namespace

void register_recurrent(OpRegistry& registry) {
  registry.add("RNN", make_rnn);
  registry.add("GRU", make_gru);
  registry.add("LSTM", make_lstm);
}

}  // namespace headrace
