// Conv and headrace.FusedConv in float32: for each image and group, the weights as a matrix
// [channels out, channels in * taps] times the windows as a matrix [channels in * taps, pixels],
// whose panels are packed straight from the image.
#include "ops/conv/conv.h"

#include <algorithm>

#include "ops/conv/conv_transpose.h"
#include "ops/conv/pool.h"
#include "ops/rooms.h"

namespace headrace {
namespace {

// Multiply-adds worth a task of their own, and tasks per thread; see linear/gemm.cc.
constexpr int64_t kTaskWork = 1 << 19;
constexpr int64_t kTasksPerThread = 6;
// Packed windows that stay in a core's L2 cache while the weights stream by.
constexpr int64_t kChunkBytes = 256 * 1024;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int64_t aligned(int64_t floats) {
  return ceil_div(floats, 16) * 16;
}

// Offsets into a channel of X, for `count` pixels from `first` on, of every tap; -1 on padding and
// for the columns after `count`.
void window_offsets(const Windows& w, int64_t first, int64_t count, int64_t cols,
                    int32_t* offsets) {
  constexpr int64_t kMaxCols = 32;
  int32_t at[kSpatial][kMaxCols];
  for (int64_t j = 0; j < cols; ++j) {
    int64_t pixel = std::min(first + j, first + count - 1);
    for (int axis = kSpatial - 1; axis >= 0; --axis) {
      at[axis][j] = static_cast<int32_t>(pixel % w.out[axis] * w.stride[axis] - w.pad_begin[axis]);
      pixel /= w.out[axis];
    }
  }
  auto below = [](int32_t i, int64_t n) {
    return static_cast<uint32_t>(i) < static_cast<uint32_t>(n);
  };
  for (int64_t kd = 0; kd < w.kernel[0]; ++kd) {
    for (int64_t kh = 0; kh < w.kernel[1]; ++kh) {
      for (int64_t kw = 0; kw < w.kernel[2]; ++kw, offsets += cols) {
        auto dd = static_cast<int32_t>(kd * w.dilation[0]);
        auto dh = static_cast<int32_t>(kh * w.dilation[1]);
        auto dw = static_cast<int32_t>(kw * w.dilation[2]);
        for (int64_t j = 0; j < cols; ++j) {
          int32_t d = at[0][j] + dd, h = at[1][j] + dh, x = at[2][j] + dw;
          bool inside = below(d, w.in[0]) && below(h, w.in[1]) && below(x, w.in[2]) && j < count;
          auto width = static_cast<int32_t>(w.in[2]);
          auto height = static_cast<int32_t>(w.in[1]);
          offsets[j] = inside ? (d * height + h) * width + x : -1;
        }
      }
    }
  }
}

// True if the matrix of windows is the image itself.
bool is_pointwise(const Windows& w) {
  for (int axis = 0; axis < kSpatial; ++axis) {
    if (w.kernel[axis] != 1 || w.stride[axis] != 1 || w.out[axis] != w.in[axis]) return false;
  }
  return true;
}

class Conv : public Op {
 public:
  explicit Conv(const NodeSpec& node)
      : spec_(node),
        gemm_(HEADRACE_KERNELS(node.isa, gemm_kernels)),
        kernels_(HEADRACE_KERNELS(node.isa, conv_kernels)) {
    bool pack = node.is_constant(ConvSpec::kWeight) && !is_depthwise(node);
    if (!pack) return;
    const ConstTensorView& weight = node.constants[ConvSpec::kWeight];
    spec_.weight_packed = true;
    spec_.weight_shape = weight.shape;
    int64_t k = weight.shape.elements(1, weight.shape.rank());
    int64_t rows = weight.shape[0] / spec_.groups;
    group_size_ = gemm_.packed_rows_words(rows, k);
    packed_ = make_aligned_words(group_size_ * spec_.groups);
    for (int64_t g = 0; g < spec_.groups; ++g) {
      gemm_.pack_rows({weight.as<float>() + g * rows * k, k}, rows, k,
                      packed_.get() + g * group_size_);
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;

  bool can_overwrite(size_t input) const override { return input == ConvSpec::kResidual; }
  bool consumes(size_t input) const override {
    return input == ConvSpec::kWeight && spec_.weight_packed;
  }
  int64_t packed_bytes() const override {
    return group_size_ * spec_.groups * static_cast<int64_t>(sizeof(float));
  }

 private:
  static bool is_depthwise(const NodeSpec& node) {
    const Shape& weight = node.constants[ConvSpec::kWeight].shape;
    return node.int_or("group", 1) > 1 && weight[1] == 1;
  }

  void pack_weights(const OpRun& run, std::span<ConvProblem> problems) const;
  void run_task(const ConvProblem& p, int64_t task, float* scratch) const;
  void pack_chunk(const ConvProblem& p, const float* x, int64_t first, int64_t count,
                  int32_t* offsets, float* panels) const;
  int64_t scratch_size(const ConvProblem& p) const;
  int64_t chunk_panels(const ConvProblem& p) const;

  ConvSpec spec_;
  const GemmKernels& gemm_;
  const ConvKernels& kernels_;
  AlignedWords packed_;  // group by group
  int64_t group_size_ = 0;
};

void Conv::infer(InputViews inputs, std::span<Shape> outputs) const {
  const Shape& x = inputs[ConvSpec::kX].shape;
  const Shape& weight = spec_.weight_packed ? spec_.weight_shape : inputs[ConvSpec::kWeight].shape;
  bool fits = x.rank() >= 3 && weight.rank() == x.rank() && weight[1] * spec_.groups == x[1] &&
              weight[0] % spec_.groups == 0;
  if (!fits) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x), " and weights of shape ",
         to_string(weight), " in ", spec_.groups, " groups");
  }
  Windows w = windows_over(spec_.window, x, weight.dims().subspan(2));
  if (w.in_size() > INT32_MAX) {
    fail(ErrorKind::kShapeMismatch, "got X of shape ", to_string(x),
         ", expected less than 2^31 elements per channel");
  }
  outputs[0] = output_shape(w, x, weight[0]);
  auto is_present = [&](size_t i) { return i < inputs.size() && inputs[i].present(); };
  if (is_present(ConvSpec::kBias) && inputs[ConvSpec::kBias].shape != Shape{weight[0]}) {
    fail(ErrorKind::kShapeMismatch, "got a bias of shape ",
         to_string(inputs[ConvSpec::kBias].shape), ", expected [", weight[0], "]");
  }
  if (is_present(ConvSpec::kResidual) && inputs[ConvSpec::kResidual].shape != outputs[0]) {
    fail(ErrorKind::kShapeMismatch, "got a residual of shape ",
         to_string(inputs[ConvSpec::kResidual].shape), ", expected the output's, ",
         to_string(outputs[0]));
  }
}

int64_t Conv::chunk_panels(const ConvProblem& p) const {
  int64_t panel_bytes = std::max<int64_t>(p.k(), 1) * gemm_.panel_cols * 4;
  return std::max<int64_t>(kChunkBytes / panel_bytes, 1);
}

int64_t Conv::scratch_size(const ConvProblem& p) const {
  int64_t panels = std::min(chunk_panels(p), ceil_div(p.pixels(), gemm_.panel_cols));
  return aligned(p.windows.taps() * gemm_.panel_cols) + aligned(panels * gemm_.panel_cols * p.k());
}

// Weights that are not constant are packed for each Request.
void Conv::pack_weights(const OpRun& run, std::span<ConvProblem> problems) const {
  int64_t size = 0;
  for (ConvProblem& p : problems) size += p.groups * gemm_.packed_rows_words(p.group_out, p.k());
  Word* packed = run.scratch_of<Word>(size);
  for (ConvProblem& p : problems) {
    p.packed = packed;
    for (int64_t g = 0; g < p.groups; ++g) {
      gemm_.pack_rows({p.weight + g * p.group_out * p.k(), p.k()}, p.group_out, p.k(), packed);
      packed += gemm_.packed_rows_words(p.group_out, p.k());
    }
  }
}

void Conv::run(const OpRun& run) const {
  auto* memory = run.scratch_of<ConvProblem>(static_cast<int64_t>(run.requests()));
  std::span<ConvProblem> problems(memory, run.requests());
  for (size_t r = 0; r < run.requests(); ++r) {
    problems[r] = conv_problem(spec_, run, r);
    problems[r].packed = packed_.get();
  }
  if (!problems.empty() && !spec_.weight_packed) {
    if (problems[0].groups > 1 && problems[0].group_in == 1) {
      return run_depthwise(run, gemm_, kernels_, problems);
    }
    pack_weights(run, problems);
  }
  int64_t products = 0;
  int64_t scratch = 0;
  for (const ConvProblem& p : problems) {
    products += p.images * p.groups;
    scratch = std::max(scratch, scratch_size(p));
  }
  // Only where the images and groups are too few to go round are they split themselves.
  int64_t wanted = ceil_div(kTasksPerThread * run.threads(), std::max<int64_t>(products, 1));
  int64_t tasks = number_tasks(problems, [&](ConvProblem& p) {
    int64_t panels = ceil_div(p.pixels(), gemm_.panel_cols);
    int64_t tiles = ceil_div(p.group_out, gemm_.tile_rows);
    int64_t split = std::min(wanted, p.group_out * p.k() * p.pixels() / kTaskWork);
    if (run.threads() == 1) split = 1;
    p.col_ranges = std::clamp<int64_t>(split, 1, std::max<int64_t>(panels, 1));
    p.row_ranges = std::clamp<int64_t>(split / p.col_ranges, 1, std::max<int64_t>(tiles, 1));
    bool empty = p.pixels() == 0 || p.group_out == 0;
    return empty ? 0 : p.images * p.groups * p.col_ranges * p.row_ranges;
  });
  float* packed = run.scratch_of<float>(scratch * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const ConvProblem& p = problem_of(problems, task);
    run_task(p, task - p.first_task, packed + thread * scratch);
  });
}

// One range of pixels and one range of channels of one group of one image.
void Conv::run_task(const ConvProblem& p, int64_t task, float* scratch) const {
  int64_t row_range = task % p.row_ranges;
  task /= p.row_ranges;
  int64_t col_range = task % p.col_ranges;
  task /= p.col_ranges;
  int64_t group = task % p.groups;
  int64_t image = task / p.groups;
  int64_t row = p.group_out * row_range / p.row_ranges;
  int64_t rows = p.group_out * (row_range + 1) / p.row_ranges - row;
  int64_t panels = ceil_div(p.pixels(), gemm_.panel_cols);
  int64_t panel = panels * col_range / p.col_ranges;
  int64_t panel_end = panels * (col_range + 1) / p.col_ranges;
  const float* x = p.x + (image * p.groups + group) * p.group_in * p.windows.in_size();
  int64_t channel = group * p.group_out + row;
  auto* offsets = reinterpret_cast<int32_t*>(scratch);
  float* packed = scratch + aligned(p.windows.taps() * gemm_.panel_cols);
  for (; panel < panel_end; panel += chunk_panels(p)) {
    int64_t pixel = panel * gemm_.panel_cols;
    int64_t chunk_end = std::min(panel + chunk_panels(p), panel_end);
    int64_t pixels = std::min(p.pixels(), chunk_end * gemm_.panel_cols) - pixel;
    pack_chunk(p, x, pixel, pixels, offsets, packed);
    gemm_.multiply(
        {.a = p.packed + group * gemm_.packed_rows_words(p.group_out, p.k()) + row * kGemmRowStride,
         .b = reinterpret_cast<const Word*>(packed),
         .rows = rows,
         .rows_packed = p.group_out,
         .k = p.k(),
         .cols = pixels,
         .c = p.y_at(image, channel, pixel),
         .c_stride = p.pixels(),
         .epilogue = p.epilogue_at(image, channel, pixel)});
  }
}

void Conv::pack_chunk(const ConvProblem& p, const float* x, int64_t first, int64_t count,
                      int32_t* offsets, float* panels) const {
  const Windows& w = p.windows;
  if (is_pointwise(w)) {
    return gemm_.pack_panels({x + first, w.in_size()}, p.k(), count, 1.0f,
                             reinterpret_cast<Word*>(panels));
  }
  for (int64_t done = 0; done < count; done += gemm_.panel_cols) {
    int64_t cols = std::min<int64_t>(gemm_.panel_cols, count - done);
    window_offsets(w, first + done, cols, gemm_.panel_cols, offsets);
    kernels_.pack_windows(x, p.group_in, w.in_size(), offsets, w.taps(), panels + done * p.k());
  }
}

std::unique_ptr<Op> make_conv(const NodeSpec& spec) {
  return std::make_unique<Conv>(spec);
}

}  // namespace

ConvSpec::ConvSpec(const NodeSpec& spec) : window(window_of(spec)), epilogue(epilogue_of(spec)) {
  for (size_t i = 0; i < spec.inputs(); ++i) {
    if (spec.has_input(i) && spec.input_dtypes[i] != DType::kF32) {
      spec.unsupported(
          str("got input ", i, " of dtype ", name_of(spec.input_dtypes[i]), ", expected float32"));
    }
  }
  groups = spec.int_or("group", 1);
  if (groups < 1) spec.invalid(str("got group ", groups, ", expected at least 1"));
  epilogue.bias_per_row = true;
  epilogue.residual_first = true;
  if (!spec.is_constant(kWeight)) return;
  const Shape& weight = spec.constants[kWeight].shape;
  if (weight.rank() < 3 || weight.rank() > 2 + kSpatial || weight[0] % groups != 0) {
    spec.unsupported(str("got weights of shape ", to_string(weight), " in ", groups,
                         " groups, expected 1 to ", kSpatial, " spatial axes"));
  }
}

Epilogue ConvProblem::epilogue_at(int64_t image, int64_t channel, int64_t pixel) const {
  Epilogue e = epilogue;
  if (e.bias) e.bias += channel;
  if (e.residual) e.residual += y_at(image, channel, pixel) - y;
  return e;
}

ConvProblem conv_problem(const ConvSpec& spec, const OpRun& run, size_t request) {
  ConstTensorView x = run.input(ConvSpec::kX).view(request);
  ConstTensorView weight;
  if (!spec.weight_packed) weight = run.input(ConvSpec::kWeight).view(request);
  const Shape& shape = spec.weight_packed ? spec.weight_shape : weight.shape;
  ConvProblem p{};
  p.windows = windows_over(spec.window, x.shape, shape.dims().subspan(2));
  p.images = x.shape[0];
  p.groups = spec.groups;
  p.group_in = shape[1];
  p.group_out = shape[0] / spec.groups;
  p.x = x.as<float>();
  p.weight = weight.as<float>();
  p.y = run.output(0).view(request).as<float>();
  p.epilogue = spec.epilogue;
  if (run.has_input(ConvSpec::kBias)) {
    p.epilogue.bias = run.input(ConvSpec::kBias).view(request).as<float>();
  }
  if (run.has_input(ConvSpec::kResidual)) {
    p.epilogue.residual = run.input(ConvSpec::kResidual).view(request).as<float>();
    p.epilogue.residual_stride = p.pixels();
  }
  return p;
}

const ConvProblem& problem_of(std::span<const ConvProblem> problems, int64_t task) {
  auto next = std::ranges::upper_bound(problems, task, {}, &ConvProblem::first_task);
  return *(next - 1);
}

void register_conv_ops(OpRegistry& registry) {
  registry.add("Conv", make_conv);
  registry.add("headrace.FusedConv", make_conv);
  registry.add("ConvTranspose", make_conv_transpose);
  register_pools(registry);
  register_global_pools(registry);
}

}  // namespace headrace
