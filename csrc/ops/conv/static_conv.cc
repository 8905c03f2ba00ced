// headrace.QuantizedConv(X, W, scales, bias?, residual?): a convolution of bytes, channels last, as
// linear/static_int8.h computes it. W is as ONNX has it, less its zero points: int8, or int16 where
// these are up to 255 away from 0; `scales` has one number per channel of Y.
#include <algorithm>
#include <vector>

#include "ops/conv/byte_kernels.h"
#include "ops/conv/conv.h"
#include "ops/conv/static_conv.h"

namespace headrace {
namespace {

// As dense.cc and depthwise.cc split the work, in words multiplied.
constexpr int64_t kTaskWork = 1 << 17;
constexpr int64_t kTasksPerThread = 6;
constexpr int64_t kBlockTilesMin = 8;
constexpr int64_t kDepthwiseTaskWork = 1 << 16;
// Weights up to this many bytes stay in a core's L2 cache while a few rows at a time go past them.
constexpr int64_t kResidentBytes = 384 * 1024;
constexpr int64_t kResidentTiles = 2;

// The convolution of consecutive Requests of one shape. Lies in scratch memory.
struct Problem {
  Windows windows;
  int64_t images;
  const uint8_t* x;
  std::byte* y;
  const uint8_t* residual;
  int64_t first_task;
  int64_t row_blocks;
  int64_t col_ranges;

  int64_t rows() const { return images * windows.out_size(); }
};

bool is_pointwise(const Windows& w) {
  for (int axis = 0; axis < kSpatial; ++axis) {
    if (w.kernel[axis] != 1 || w.stride[axis] != 1 || w.out[axis] != w.in[axis]) return false;
  }
  return true;
}

class QuantizedConv : public Op {
 public:
  explicit QuantizedConv(const NodeSpec& node);

  void infer(InputViews inputs, std::span<Shape> outputs) const override;
  void run(const OpRun& run) const override;
  bool can_overwrite(size_t input) const override { return input == kResidual && overwrites_; }
  bool consumes(size_t input) const override { return input >= kWeight && input <= kBias; }

 private:
  enum Input : size_t { kX, kWeight, kScales, kBias, kResidual };
  // Rows of Y times panels of one group's weights.
  struct Part {
    int64_t group;
    int64_t panel, panel_end;
    int64_t row = 0;
    int64_t rows = 0;
  };

  void check(const NodeSpec& node) const;
  void pack(const NodeSpec& node);
  void pack_depthwise(const NodeSpec& node, Word* to) const;
  void pack_dense(const NodeSpec& node, Word* to) const;

  std::span<Problem> problems_of(const OpRun& run) const;
  const Problem& problem_of(std::span<const Problem> problems, int64_t task) const;
  void run_dense(const OpRun& run, std::span<Problem> problems) const;
  int64_t split(const OpRun& run, Problem& p) const;
  int64_t step(const Problem& p) const;
  int64_t window_bytes(const Problem& p) const;
  void run_task(const Problem& p, int64_t task, Word* packed) const;
  void pack_rows(const Problem& p, const Part& part, Word* packed) const;
  void run_depthwise(const OpRun& run, std::span<Problem> problems) const;
  void run_depthwise_rows(const Problem& p, int64_t begin, int64_t end, const uint8_t* paddings,
                          const uint8_t** sources) const;

  StaticFinish finish_of(const Problem& p) const;
  int64_t channels_in() const { return groups_ * weight_[1]; }
  int64_t channels_out() const { return weight_[0]; }
  int64_t group_out() const { return weight_[0] / groups_; }
  int64_t taps() const { return weight_.elements(2, weight_.rank()); }
  int64_t k() const { return weight_[1] * taps(); }
  int64_t panels() const { return kernels_.panels(group_out()); }
  int64_t group_words() const { return panels() * kernels_.panel_words(k()); }
  // Columns of the tables that go with the weights.
  int64_t padded() const {
    if (depthwise_) return kernels_.panels(groups_) * kernels_.panel_cols;
    return groups_ * panels() * kernels_.panel_cols;
  }
  // The byte of X that stands for 0.
  uint8_t padding() const {
    return static_cast<uint8_t>(quantization_.x().zero ^ quantization_.x().flip);
  }

  WindowSpec window_;
  int64_t groups_;
  StaticQuantization quantization_;
  const StaticKernels& kernels_;
  const ByteKernels& byte_kernels_;
  Shape weight_;
  bool depthwise_;
  bool overwrites_;
  Packed packed_;
  Packed columns_;
};

int32_t integer_at(const ConstTensorView& weight, int64_t i) {
  return weight.dtype == DType::kI8 ? weight.as<int8_t>()[i] : weight.as<int16_t>()[i];
}

QuantizedConv::QuantizedConv(const NodeSpec& node)
    : window_(window_of(node)),
      groups_(node.int_or("group", 1)),
      quantization_(node, kResidual),
      kernels_(static_kernels_for(node.isa, node.input_dtypes.at(kWeight) == DType::kI16)),
      byte_kernels_(HEADRACE_KERNELS(node.isa, byte_kernels)) {
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
  int64_t words = depthwise_ ? taps() * padded() : groups_ * group_words();
  packed_ = node.pack(words * static_cast<int64_t>(sizeof(Word)), [&](std::byte* to) {
    auto* packed = reinterpret_cast<Word*>(to);
    if (depthwise_) return pack_depthwise(node, packed);
    pack_dense(node, packed);
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

void QuantizedConv::pack_depthwise(const NodeSpec& node, Word* to) const {
  auto* floats = reinterpret_cast<float*>(to);
  std::fill_n(floats, taps() * padded(), 0.0f);
  for (int64_t c = 0; c < groups_; ++c) {
    for (int64_t t = 0; t < taps(); ++t) {
      floats[t * padded() + c] =
          static_cast<float>(integer_at(node.constants[kWeight], c * taps() + t));
    }
  }
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

std::span<Problem> QuantizedConv::problems_of(const OpRun& run) const {
  auto* problems = run.scratch_of<Problem>(static_cast<int64_t>(run.requests()));
  size_t count = 0;
  int64_t y_size = quantization_.finish().floats ? 4 : 1;
  for (size_t r = 0; r < run.requests(); ++r) {
    ConstTensorView x = run.input(kX).view(r);
    Shape shape = channels_first(x.shape, true);
    Problem p{};
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
      Problem& last = problems[count - 1];
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

const Problem& QuantizedConv::problem_of(std::span<const Problem> problems, int64_t task) const {
  auto next = std::ranges::upper_bound(problems, task, {}, &Problem::first_task);
  return *(next - 1);
}

StaticFinish QuantizedConv::finish_of(const Problem& p) const {
  StaticFinish finish = quantization_.finish();
  StaticQuantization::point_at_columns(columns_.as<std::byte>(), padded(), &finish);
  finish.residual = p.residual;
  finish.residual_stride = channels_out();
  return finish;
}

void QuantizedConv::run(const OpRun& run) const {
  std::span<Problem> problems = problems_of(run);
  if (depthwise_) return run_depthwise(run, problems);
  run_dense(run, problems);
}

// Ranges of rows first: columns of the same rows pack them once more. Returns the number of tasks.
int64_t QuantizedConv::split(const OpRun& run, Problem& p) const {
  int64_t tiles = ceil_div(p.rows(), kernels_.tile_rows);
  int64_t wanted = 1;
  if (run.threads() > 1) {
    int64_t work = p.rows() * channels_out() * std::max<int64_t>(kernels_.words(k()), 1);
    wanted = std::clamp<int64_t>(work / kTaskWork, 1, kTasksPerThread * run.threads());
  }
  wanted = ceil_div(wanted, groups_);
  p.row_blocks = std::clamp<int64_t>(tiles / kBlockTilesMin, 1, wanted);
  int64_t ranges = std::clamp<int64_t>(ceil_div(wanted, p.row_blocks), 1, panels());
  // Even ranges: 8 panels go round as 4 times 2, not as 6 times 1 or 2.
  p.col_ranges = ceil_div(panels(), ceil_div(panels(), ranges));
  return p.row_blocks * p.col_ranges * groups_;
}

// Rows that are packed and multiplied at a time.
int64_t QuantizedConv::step(const Problem& p) const {
  int64_t range = ceil_div(panels(), p.col_ranges);
  int64_t bytes = range * kernels_.panel_words(k()) * static_cast<int64_t>(sizeof(Word));
  return (bytes <= kResidentBytes ? kResidentTiles : kBlockTilesMin) * kernels_.tile_rows;
}

// Room for windows that are first written as plain rows, then packed as the kernels want them.
int64_t QuantizedConv::window_bytes(const Problem& p) const {
  if (is_pointwise(p.windows) || kernels_.raw_flip == quantization_.x().flip) return 0;
  return ceil_div(std::min(p.rows(), step(p)) * k(), 64) * 64;
}

void QuantizedConv::run_dense(const OpRun& run, std::span<Problem> problems) const {
  int64_t size = 0;
  int64_t tasks = 0;
  for (Problem& p : problems) {
    p.first_task = tasks;
    if (p.rows() == 0 || channels_out() == 0) continue;
    tasks += split(run, p);
    int64_t rows = std::min(p.rows(), step(p));
    size = std::max(size, kernels_.packed_rows_words(rows, k()) +
                              window_bytes(p) / static_cast<int64_t>(sizeof(Word)));
  }
  Word* packed = run.scratch_of<Word>(size * run.threads());
  run.parallel(tasks, [&](int64_t task, int thread) {
    const Problem& p = problem_of(problems, task);
    run_task(p, task - p.first_task, packed + thread * size);
  });
}

// A range of rows times a range of columns of one group.
void QuantizedConv::run_task(const Problem& p, int64_t task, Word* packed) const {
  int64_t range = task % p.col_ranges;
  int64_t group = task / p.col_ranges % groups_;
  int64_t block = task / (p.col_ranges * groups_);
  Part part{.group = group,
            .panel = panels() * range / p.col_ranges,
            .panel_end = panels() * (range + 1) / p.col_ranges};
  int64_t col = part.panel * kernels_.panel_cols;
  int64_t channel = group * group_out() + col;
  const Word* weights =
      packed_.as<Word>() + group * group_words() + part.panel * kernels_.panel_words(k());
  StaticFinish finish = finish_of(p);
  int64_t size = finish.floats ? 4 : 1;
  // Whole tiles, so that only the last range has a smaller one.
  int64_t tiles = ceil_div(p.rows(), kernels_.tile_rows);
  int64_t begin = tiles * block / p.row_blocks * kernels_.tile_rows;
  int64_t end = std::min(tiles * (block + 1) / p.row_blocks * kernels_.tile_rows, p.rows());
  // Even steps: 10 tiles of rows go as 5 + 5, not as 8 + 2.
  int64_t steps = ceil_div(end - begin, step(p));
  for (int64_t i = 0; i < steps; ++i) {
    part.row = begin + (end - begin) * i / steps;
    part.rows = begin + (end - begin) * (i + 1) / steps - part.row;
    pack_rows(p, part, packed);
    StaticFinish here = finish.at(part.row, group * panels() * kernels_.panel_cols + col);
    if (p.residual) here.residual = p.residual + part.row * channels_out() + channel;
    kernels_.multiply({.a = packed,
                       .b = weights,
                       .rows = part.rows,
                       .k = kernels_.words(k()),
                       .cols = std::min(group_out(), part.panel_end * kernels_.panel_cols) - col,
                       .y = p.y + (part.row * channels_out() + channel) * size,
                       .y_stride = channels_out(),
                       .finish = here});
  }
}

void QuantizedConv::pack_rows(const Problem& p, const Part& part, Word* packed) const {
  int64_t channel = part.group * weight_[1];
  if (is_pointwise(p.windows)) {
    return kernels_.pack_rows(p.x + part.row * channels_in() + channel, channels_in(), part.rows,
                              k(), quantization_.x(), packed);
  }
  ByteWindows windows{.x = p.x + channel,
                      .channels = weight_[1],
                      .pixel_stride = channels_in(),
                      .windows = &p.windows,
                      .first = part.row,
                      .count = part.rows,
                      .padding = padding()};
  if (window_bytes(p) == 0) {
    constexpr int64_t kPerWord = sizeof(Word);
    return byte_kernels_.pack_windows(windows,
                                      {.first = reinterpret_cast<uint8_t*>(packed),
                                       .row_stride = kGemmRowStride * kPerWord,
                                       .block = kGemmBlockWords * kPerWord,
                                       .block_stride = part.rows * kGemmRowStride * kPerWord});
  }
  auto* plain = reinterpret_cast<uint8_t*>(packed + kernels_.packed_rows_words(part.rows, k()));
  byte_kernels_.pack_windows(
      windows, {.first = plain, .row_stride = k(), .block = k(), .block_stride = k()});
  kernels_.pack_rows(plain, k(), part.rows, k(), quantization_.x(), packed);
}

void QuantizedConv::run_depthwise(const OpRun& run, std::span<Problem> problems) const {
  auto* paddings = run.scratch_of<uint8_t>(channels_in());
  std::fill_n(paddings, channels_in(), padding());
  int64_t room = taps() * kByteDepthwisePixels;
  const uint8_t** sources = run.scratch_of<const uint8_t*>(room * run.threads());
  for (const Problem& p : problems) {
    int64_t rows = p.images * p.windows.out[0] * p.windows.out[1];
    int64_t work = std::max<int64_t>(p.windows.out[2] * taps() * groups_, 1);
    run.parallel_ranges(rows, kDepthwiseTaskWork / work,
                        [&](int64_t begin, int64_t end, int thread) {
                          run_depthwise_rows(p, begin, end, paddings, sources + thread * room);
                        });
  }
}

void QuantizedConv::run_depthwise_rows(const Problem& p, int64_t begin, int64_t end,
                                       const uint8_t* paddings, const uint8_t** sources) const {
  const Windows& w = p.windows;
  StaticFinish finish = finish_of(p);
  for (int64_t row = begin; row < end; ++row) {
    int64_t pixel = row * w.out[2];
    byte_kernels_.depthwise({.x = p.x + row / (w.out[0] * w.out[1]) * w.in_size() * groups_,
                             .weights = packed_.as<float>(),
                             .paddings = paddings,
                             .y = p.y + pixel * groups_ * (finish.floats ? 4 : 1),
                             .channels = groups_,
                             .padded = padded(),
                             .windows = &w,
                             .depth = row / w.out[1] % w.out[0],
                             .height = row % w.out[1],
                             .sources = sources,
                             .flip = quantization_.x().flip,
                             .finish = finish.at(pixel, 0)});
  }
}

}  // namespace

std::unique_ptr<Op> make_quantized_conv(const NodeSpec& node) {
  return std::make_unique<QuantizedConv>(node);
}

}  // namespace headrace
