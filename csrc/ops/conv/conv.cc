// Conv and headrace.FusedConv in float32: what they accept, and who computes it.
#include "ops/conv/conv.h"

#include <algorithm>

#include "ops/conv/conv_transpose.h"
#include "ops/conv/pool.h"
#include "ops/conv/static_conv.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

// Y = act(conv(X, W) + B + residual). FusedConv is channels last. Conv is as ONNX has it; what is
// left of it (the weights are not constant) has X and Y transposed on the way.
class Conv : public Op {
 public:
  explicit Conv(const NodeSpec& node);

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override {
    return channels_last_ && y_bf16_ == residual_bf16_ && input == kResidual;
  }
  bool consumes(size_t input) const override { return input == kWeight && constant_; }
  bool image_wise() const override { return channels_last_ && constant_ && !own_images_; }

 private:
  enum Input : size_t { kX, kWeight, kBias, kResidual };

  ConvWeight weight_of(const Shape& shape, const float* data) const;
  ConvProblem problem_at(const OpRun& run, size_t request) const;
  std::span<ConvProblem> problems_of(const OpRun& run) const;
  void pack_weights(const OpRun& run, std::span<ConvProblem> problems) const;
  void run_channels_first(const OpRun& run, std::span<ConvProblem> problems) const;

  bool channels_last_;
  WindowSpec window_;
  int64_t groups_;
  Epilogue epilogue_;  // its activation
  std::unique_ptr<ConvWay> way_;
  const ConvKernels& kernels_;
  Shape weight_shape_;  // of constant weights
  bool y_bf16_ = false;
  bool residual_bf16_ = false;
  bool own_images_ = false;  // the residual is a constant, of which each image of Y has its own
  bool constant_ = false;
  Packed packed_;
};

Conv::Conv(const NodeSpec& node)
    : channels_last_(node.op == "headrace.FusedConv"),
      window_(window_of(node)),
      groups_(node.int_or("group", 1)),
      epilogue_(epilogue_of(node)),
      way_(make_dense_way(node.isa, precision_of(node))),
      kernels_(HEADRACE_KERNELS(node.isa, conv_kernels)) {
  // Between convolutions of low precision X, Y and the residual may be bfloat16.
  bool low = channels_last_ && precision_of(node) != Precision::kF32;
  auto check = [&](DType dtype, std::string_view what, bool narrow) {
    if (dtype == DType::kF32 || (narrow && dtype == DType::kBF16)) return;
    node.unsupported(str("got ", what, " of dtype ", name_of(dtype), ", expected float32",
                         narrow ? " or bfloat16" : ""));
  };
  for (size_t i = 0; i < node.inputs(); ++i) {
    bool narrow = low && (i == kX || i == kResidual);
    if (node.has_input(i)) check(node.input_dtypes[i], str("input ", i), narrow);
  }
  check(node.output_dtypes[0], "an output", low);
  y_bf16_ = node.output_dtypes[0] == DType::kBF16;
  residual_bf16_ = node.has_input(kResidual) && node.input_dtypes[kResidual] == DType::kBF16;
  own_images_ = node.is_constant(kResidual);
  std::string layout = node.string_or("layout", "nchw");
  if (layout != (channels_last_ ? "nhwc" : "nchw")) {
    node.unsupported(str("got layout '", layout, "', expected ", channels_last_ ? "nhwc" : "nchw"));
  }
  if (groups_ < 1) node.invalid(str("got group ", groups_, ", expected at least 1"));
  epilogue_.residual_first = true;
  if (!node.is_constant(kWeight)) return;
  const ConstTensorView& weight = node.constants[kWeight];
  weight_shape_ = weight.shape;
  if (weight_shape_.rank() < 3 || weight_shape_.rank() > 2 + kSpatial ||
      weight_shape_[0] % groups_ != 0) {
    node.unsupported(str("got weights of shape ", to_string(weight_shape_), " in ", groups_,
                         " groups, expected 1 to ", kSpatial, " spatial axes"));
  }
  ConvWeight w = weight_of(weight_shape_, weight.as<float>());
  if (precision_of(node) == Precision::kInt8 && w.k() > kMaxInt8K) {
    node.unsupported(str("int8 with ", w.k(), " inputs, expected at most ", kMaxInt8K));
  }
  if (precision_of(node) != Precision::kInt8 && w.group_in == 1 && w.group_out == 1 &&
      w.groups > 1) {
    way_ = make_depthwise_way(node.isa);
  }
  if (int64_t tile = node.int_or("winograd", 0); tile != 0) {
    if (low || !channels_last_ || (tile != 2 && tile != 4) ||
        !fits_winograd(w, window_, weight_shape_)) {
      node.unsupported(str("got winograd ", tile, " for weights of shape ",
                           to_string(weight_shape_),
                           ", expected 2 or 4 in float32, channels last, "
                           "for one group of 3 x 3 weights without strides or dilations"));
    }
    way_ = make_winograd_way(node.isa, tile);
  }
  constant_ = true;
  packed_ =
      node.pack(way_->packed_words(w) * static_cast<int64_t>(sizeof(Word)), [&](std::byte* to) {
        AlignedWords room = make_aligned_words(way_->packing_room(w));
        way_->pack(w, reinterpret_cast<Word*>(to), reinterpret_cast<float*>(room.get()));
      });
}

ConvWeight Conv::weight_of(const Shape& shape, const float* data) const {
  return {.data = data,
          .groups = groups_,
          .group_in = shape[1],
          .group_out = shape[0] / groups_,
          .taps = shape.elements(2, shape.rank())};
}

void Conv::infer(InputViews inputs, std::span<Shape> outputs) const {
  Shape x = channels_first(inputs[kX].shape, channels_last_);
  const Shape& weight = constant_ ? weight_shape_ : inputs[kWeight].shape;
  bool fits = x.rank() >= 3 && weight.rank() == x.rank() && weight[1] * groups_ == x[1] &&
              weight[0] % groups_ == 0;
  if (!fits) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(inputs[kX].shape),
         " and weights of shape ", to_string(weight), " in ", groups_, " groups");
  }
  Windows w = windows_over(window_, x, weight.dims().subspan(2));
  Shape y = output_shape(w, x, weight[0]);
  outputs[0] = channels_last_ ? channels_last(y) : y;
  auto is_present = [&](size_t i) { return i < inputs.size() && inputs[i].present(); };
  if (is_present(kBias) && inputs[kBias].shape != Shape{weight[0]}) {
    fail(ErrorKind::kShapeMismatch, "got a bias of shape ", to_string(inputs[kBias].shape),
         ", expected [", weight[0], "]");
  }
  if (is_present(kResidual) && inputs[kResidual].shape != outputs[0]) {
    fail(ErrorKind::kShapeMismatch, "got a residual of shape ", to_string(inputs[kResidual].shape),
         ", expected the output's, ", to_string(outputs[0]));
  }
}

ConvProblem Conv::problem_at(const OpRun& run, size_t request) const {
  ConstTensorView x = run.input(kX).view(request);
  ConstTensorView weight;
  if (!constant_) weight = run.input(kWeight).view(request);
  const Shape& weight_shape = constant_ ? weight_shape_ : weight.shape;
  Shape shape = channels_first(x.shape, channels_last_);
  ConvProblem p{};
  p.windows = windows_over(window_, shape, weight_shape.dims().subspan(2));
  p.images = shape[0];
  p.weight = weight_of(weight_shape, weight.as<float>());
  p.packed = packed_.as<Word>();
  p.x = x.data;
  p.x_bf16 = x.dtype == DType::kBF16;
  p.y = run.output(0).view(request).data;
  p.y_bf16 = y_bf16_;
  p.epilogue = epilogue_;
  if (run.has_input(kBias)) p.epilogue.bias = run.input(kBias).view(request).as<float>();
  if (run.has_input(kResidual)) {
    p.epilogue.residual = run.input(kResidual).view(request).data;
    p.epilogue.residual_bf16 = run.input(kResidual).dtype == DType::kBF16;
    p.epilogue.residual_stride = p.channels_out();
  }
  return p;
}

// True if b's images follow a's, so that they are one problem: pixels do not mind whose they are.
bool follows(const ConvProblem& a, const ConvProblem& b) {
  bool same = std::ranges::equal(a.windows.in, b.windows.in) && a.weight.data == b.weight.data &&
              a.epilogue.bias == b.epilogue.bias &&
              a.x_at(a.images * a.windows.in_size(), 0) == b.x && a.y_at(a.rows(), 0) == b.y;
  return same &&
         (!a.epilogue.residual || a.epilogue_at(a.rows(), 0).residual == b.epilogue.residual);
}

std::span<ConvProblem> Conv::problems_of(const OpRun& run) const {
  auto* problems = run.scratch_of<ConvProblem>(static_cast<int64_t>(run.requests()));
  size_t count = 0;
  for (size_t r = 0; r < run.requests(); ++r) {
    problems[count] = problem_at(run, r);
    if (count > 0 && follows(problems[count - 1], problems[count])) {
      problems[count - 1].images += problems[count].images;
    } else {
      ++count;
    }
  }
  return {problems, count};
}

// Weights that are not constant are packed for each Request.
void Conv::pack_weights(const OpRun& run, std::span<ConvProblem> problems) const {
  auto aligned_size = [&](const ConvProblem& p) {
    return ceil_div(way_->packed_words(p.weight), 16) * 16;
  };
  int64_t size = 0;
  int64_t room = 0;
  for (const ConvProblem& p : problems) {
    size += aligned_size(p);
    room = std::max(room, way_->packing_room(p.weight));
  }
  Word* packed = run.scratch_of<Word>(size);
  float* packing = run.scratch_of<float>(room);
  for (ConvProblem& p : problems) {
    way_->pack(p.weight, packed, packing);
    p.packed = packed;
    packed += aligned_size(p);
  }
}

void Conv::run(const OpRun& run) const {
  std::span<ConvProblem> problems = problems_of(run);
  if (!constant_) pack_weights(run, problems);
  if (channels_last_) {
    way_->run(run, problems);
  } else {
    run_channels_first(run, problems);
  }
}

void Conv::run_channels_first(const OpRun& run, std::span<ConvProblem> problems) const {
  auto x_size = [](const ConvProblem& p) { return p.windows.in_size() * p.channels_in(); };
  auto y_size = [](const ConvProblem& p) { return p.windows.out_size() * p.channels_out(); };
  int64_t size = 0;
  for (const ConvProblem& p : problems) size += p.images * (x_size(p) + y_size(p));
  float* memory = run.scratch_of<float>(size);
  for (ConvProblem& p : problems) {
    const auto* x = static_cast<const float*>(p.x);
    run.parallel(p.images, [&](int64_t i, int) {
      kernels_.transpose(x + i * x_size(p), p.channels_in(), p.windows.in_size(),
                         memory + i * x_size(p));
    });
    p.x = memory;
    memory += p.images * x_size(p);
    p.y = memory;
    memory += p.images * y_size(p);
  }
  way_->run(run, problems);
  float* y = run.output(0).view(0).as<float>();
  for (const ConvProblem& p : problems) {
    run.parallel(p.images, [&](int64_t i, int) {
      kernels_.transpose(static_cast<const float*>(p.y) + i * y_size(p), p.windows.out_size(),
                         p.channels_out(), y + i * y_size(p));
    });
    y += p.images * y_size(p);
  }
}

std::unique_ptr<Op> make_conv(const NodeSpec& spec) {
  return std::make_unique<Conv>(spec);
}

}  // namespace

Epilogue ConvProblem::epilogue_at(int64_t row, int64_t col) const {
  Epilogue e = epilogue;
  if (e.bias) e.bias += col;
  if (e.residual) {
    int64_t bytes = (row * e.residual_stride + col) * (e.residual_bf16 ? 2 : 4);
    e.residual = static_cast<const std::byte*>(e.residual) + bytes;
  }
  return e;
}

const ConvProblem& problem_of(std::span<const ConvProblem> problems, int64_t task) {
  auto next = std::ranges::upper_bound(problems, task, {}, &ConvProblem::first_task);
  return *(next - 1);
}

void register_conv_ops(OpRegistry& registry) {
  registry.add("Conv", make_conv);
  registry.add("headrace.FusedConv", make_conv);
  registry.add("headrace.QuantizedConv", make_quantized_conv);
  registry.add("ConvTranspose", make_conv_transpose);
  register_pools(registry);
  register_global_pools(registry);
  register_pixel_pools(registry);
}

}  // namespace headrace
