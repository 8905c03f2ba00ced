#include "ops/conv/static_conv.h"

#include <algorithm>
#include <vector>

namespace headrace {
namespace {

int32_t integer_at(const ConstTensorView& weight, int64_t i) {
  return weight.dtype == DType::kI8 ? weight.as<int8_t>()[i] : weight.as<int16_t>()[i];
}

}  // namespace

QuantizedConv::QuantizedConv(const NodeSpec& node)
    : window_(window_of(node)),
      groups_(node.int_or("group", 1)),
      quantization_(node, kResidual),
      kernels_(static_kernels_for(node.isa, node.input_dtypes.at(kWeight) == DType::kI16)),
      windows_(HEADRACE_KERNELS(node.isa, window_rows_kernels)),
      depthwise_kernels_(byte_depthwise_for(node.isa, node.input_dtypes[kWeight] == DType::kI16)) {
  check(node);
  weight_ = node.constants[kWeight].shape;
  depthwise_ =
      weight_[1] == 1 && weight_[0] == groups_ && groups_ > 1 && taps() <= kByteDepthwiseTapsMax;
  overwrites_ =
      quantization_.has_residual() && node.input_dtypes[kResidual] == node.output_dtypes[0];
  pack(node);
}

void QuantizedConv::check(const NodeSpec& node) const {
  if (node.string_or("layout", "nchw") != "nhwc") {
    node.unsupported(str("got layout '", node.string_or("layout", "nchw"), "', expected nhwc"));
  }
  if (groups_ < 1) node.invalid(str("got group ", groups_, ", expected at least 1"));
  DType dtype = node.input_dtypes[kWeight];
  if (!node.is_constant(kWeight) || (dtype != DType::kI8 && dtype != DType::kI16)) {
    node.unsupported(str("got weights of dtype ", name_of(dtype),
                         ", expected a constant of int8 "
                         "or int16"));
  }
  const Shape& shape = node.constants[kWeight].shape;
  if (shape.rank() < 3 || shape.rank() > 2 + kSpatial || shape[0] % groups_ != 0 ||
      shape.elements(1, shape.rank()) > kMaxStaticK) {
    node.unsupported(str("got weights of shape ", to_string(shape), " in ", groups_,
                         " groups, expected 1 to ", kSpatial, " spatial axes and at most ",
                         kMaxStaticK, " inputs"));
  }
  Shape vector{shape[0]};
  bool fits = node.is_constant(kScales) && node.constants[kScales].shape == vector &&
              (!node.has_input(kBias) ||
               (node.is_constant(kBias) && node.constants[kBias].shape == vector));
  if (!fits) node.invalid(str("expected constant scales and bias of shape ", to_string(vector)));
}

void QuantizedConv::pack(const NodeSpec& node) {
  int64_t bytes = groups_ * group_words() * static_cast<int64_t>(sizeof(Word));
  if (depthwise_) bytes = depthwise_kernels_.packed_bytes(taps(), groups_);
  packed_ = node.pack(bytes, [&](std::byte* to) {
    if (depthwise_) return pack_depthwise(node, to);
    pack_dense(node, reinterpret_cast<Word*>(to));
  });
  columns_ = node.pack(StaticQuantization::column_bytes(padded()), [&](std::byte* to) {
    const ConstTensorView& weight = node.constants[kWeight];
    // Where a group's columns fill no whole panel, those of the next begin with one all the same.
    int64_t room = padded() / (depthwise_ ? 1 : groups_);
    int64_t group = depthwise_ ? groups_ : group_out();
    std::vector<int32_t> sums(static_cast<size_t>(channels_out()));
    for (int64_t i = 0; i < weight.elements(); ++i) {
      sums[static_cast<size_t>(i / k())] += integer_at(weight, i);
    }
    ConstTensorView bias = node.has_input(kBias) ? node.constants[kBias] : ConstTensorView{};
    StaticColumns columns{.sums = sums.data(),
                          .scales = node.constants[kScales].as<float>(),
                          .bias = bias,
                          .count = channels_out(),
                          .group = group,
                          .group_padded = room};
    // The depthwise kernel takes bytes as they are.
    int32_t held = depthwise_ ? quantization_.x().zero : kernels_.held_zero(quantization_.x().zero);
    quantization_.write_columns(held, columns, to);
  });
}

void QuantizedConv::pack_depthwise(const NodeSpec& node, std::byte* to) const {
  std::vector<float> floats(static_cast<size_t>(groups_ * taps()));
  for (size_t i = 0; i < floats.size(); ++i) {
    floats[i] = static_cast<float>(integer_at(node.constants[kWeight], static_cast<int64_t>(i)));
  }
  depthwise_kernels_.pack(floats.data(), taps(), groups_, to);
}

void QuantizedConv::pack_dense(const NodeSpec& node, Word* to) const {
  const ConstTensorView& weight = node.constants[kWeight];
  AlignedWords room = make_aligned_words(std::max<int64_t>(group_out() * k(), 1));
  auto* floats = reinterpret_cast<float*>(room.get());
  for (int64_t g = 0; g < groups_; ++g) {
    // From channel by channel to tap by tap.
    for (int64_t out = 0; out < group_out(); ++out) {
      int64_t from = (g * group_out() + out) * k();
      for (int64_t t = 0; t < taps(); ++t) {
        for (int64_t c = 0; c < weight_[1]; ++c) {
          floats[out * k() + t * weight_[1] + c] =
              static_cast<float>(integer_at(weight, from + c * taps() + t));
        }
      }
    }
    kernels_.pack_panels({floats, k(), true}, k(), group_out(), 1.0f, to + g * group_words());
  }
}

void QuantizedConv::infer(InputViews inputs, std::span<Shape> outputs) const {
  Shape x = channels_first(inputs[kX].shape, true);
  if (x.rank() != weight_.rank() || x[1] != channels_in()) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(inputs[kX].shape),
         " and weights of shape ", to_string(weight_), " in ", groups_, " groups");
  }
  Windows w = windows_over(window_, x, weight_.dims().subspan(2));
  outputs[0] = channels_last(output_shape(w, x, channels_out()));
  if (quantization_.has_residual() && inputs[kResidual].shape != outputs[0]) {
    fail(ErrorKind::kShapeMismatch, "got a residual of shape ", to_string(inputs[kResidual].shape),
         ", expected the output's, ", to_string(outputs[0]));
  }
}

std::span<StaticProblem> QuantizedConv::problems_of(const OpRun& run) const {
  auto* problems = run.scratch_of<StaticProblem>(static_cast<int64_t>(run.requests()));
  size_t count = 0;
  int64_t y_size = quantization_.finish().floats ? 4 : 1;
  for (size_t r = 0; r < run.requests(); ++r) {
    ConstTensorView x = run.input(kX).view(r);
    Shape shape = channels_first(x.shape, true);
    StaticProblem p{};
    p.windows = windows_over(window_, shape, weight_.dims().subspan(2));
    p.images = shape[0];
    p.x = x.as<uint8_t>();
    p.y = static_cast<std::byte*>(run.output(0).view(r).data);
    if (quantization_.has_residual()) {
      p.residual = run.input(kResidual).view(r).as<uint8_t>();
    }
    if (count > 0) {
      // Images that follow the last ones are one problem with them: pixels do not mind whose they
      // are.
      StaticProblem& last = problems[count - 1];
      bool follows = std::ranges::equal(last.windows.in, p.windows.in) &&
                     last.x + last.images * last.windows.in_size() * channels_in() == p.x &&
                     last.y + last.rows() * channels_out() * y_size == p.y &&
                     (!p.residual || last.residual + last.rows() * channels_out() == p.residual);
      if (follows) {
        last.images += p.images;
        continue;
      }
    }
    problems[count++] = p;
  }
  return {problems, count};
}

const StaticProblem& QuantizedConv::problem_of(std::span<const StaticProblem> problems,
                                               int64_t task) const {
  auto next = std::ranges::upper_bound(problems, task, {}, &StaticProblem::first_task);
  return *(next - 1);
}

StaticFinish QuantizedConv::finish_of(const StaticProblem& p) const {
  StaticFinish finish = quantization_.finish();
  StaticQuantization::point_at_columns(columns_.as<std::byte>(), padded(), &finish);
  finish.residual = p.residual;
  finish.residual_stride = channels_out();
  return finish;
}

void QuantizedConv::run(const OpRun& run) const {
  std::span<StaticProblem> problems = problems_of(run);
  if (depthwise_) return run_depthwise(run, problems);
  run_dense(run, problems);
}

std::unique_ptr<Op> make_quantized_conv(const NodeSpec& node) {
  return std::make_unique<QuantizedConv>(node);
}

}  // namespace headrace
