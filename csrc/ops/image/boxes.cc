// NonMaxSuppression and RoiAlign.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/image/image.h"

namespace headrace {
namespace {

struct Box {
  float x1, y1, x2, y2;
};

Box box_of(const float* data, bool center) {
  if (center) {
    return {data[0] - data[2] / 2, data[1] - data[3] / 2, data[0] + data[2] / 2,
            data[1] + data[3] / 2};
  }
  return {std::min(data[1], data[3]), std::min(data[0], data[2]), std::max(data[1], data[3]),
          std::max(data[0], data[2])};
}

float overlap(const Box& a, const Box& b) {
  float width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
  float height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
  float area_a = (a.x2 - a.x1) * (a.y2 - a.y1);
  float area_b = (b.x2 - b.x1) * (b.y2 - b.y1);
  if (!(width > 0) || !(height > 0) || !(area_a > 0) || !(area_b > 0)) return 0;
  float both = width * height;
  return both / (area_a + area_b - both);
}

// Kept per thread: infer() must count the boxes, and has no arena to do it in.
struct Selection {
  std::vector<int64_t> order;
  std::vector<int64_t> kept;  // triples of batch, class, box
};
Selection& selection_of_thread() {
  static thread_local Selection selection;
  return selection;
}

class NonMaxSuppression : public Op {
 public:
  explicit NonMaxSuppression(const NodeSpec& spec)
      : center_(spec.int_or("center_point_box", 0) != 0) {
    for (size_t i : {0u, 1u, 3u, 4u}) {
      if (spec.has_input(i) && spec.input_dtypes[i] != DType::kF32) unsupported_dtype(spec, i);
    }
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& boxes = inputs[0].shape;
    const Shape& scores = inputs[1].shape;
    bool fits = boxes.rank() == 3 && scores.rank() == 3 && boxes[2] == 4 && boxes[0] == scores[0] &&
                boxes[1] == scores[2];
    if (!fits) {
      fail(ErrorKind::kShapeMismatch, "got boxes of shape ", to_string(boxes), " and scores of ",
           to_string(scores), ", expected [N, boxes, 4] and [N, classes, boxes]");
    }
    select(inputs);
    outputs[0] = {static_cast<int64_t>(selection_of_thread().kept.size()) / 3, 3};
  }

  void run(const OpRun& run) const override {
    run.parallel_requests([&](size_t r) {
      ConstTensorView inputs[5];
      size_t count = std::min<size_t>(run.inputs(), 5);
      for (size_t i = 0; i < count; ++i) {
        if (run.has_input(i)) inputs[i] = run.input(i).view(r);
      }
      select({inputs, count});
      std::ranges::copy(selection_of_thread().kept, run.output(0).view(r).as<int64_t>());
    });
  }

 private:
  template <class T>
  static T scalar(InputViews inputs, size_t i, T fallback) {
    bool given = i < inputs.size() && inputs[i].present() && inputs[i].elements() > 0;
    return given ? *inputs[i].as<T>() : fallback;
  }

  void select(InputViews inputs) const {
    Selection& selection = selection_of_thread();
    selection.kept.clear();
    auto most = scalar<int64_t>(inputs, 2, 0);
    auto threshold = scalar<float>(inputs, 3, 0);
    auto least_score = scalar<float>(inputs, 4, -INFINITY);
    const Shape& scores = inputs[1].shape;
    int64_t boxes = scores[2];
    for (int64_t n = 0; n < scores[0]; ++n) {
      for (int64_t c = 0; c < scores[1]; ++c) {
        const float* score = inputs[1].as<float>() + (n * scores[1] + c) * boxes;
        const float* box = inputs[0].as<float>() + n * boxes * 4;
        selection.order.clear();
        for (int64_t i = 0; i < boxes; ++i) {
          if (score[i] > least_score) selection.order.push_back(i);
        }
        std::ranges::sort(selection.order, [&](int64_t a, int64_t b) {
          return score[a] > score[b] || (score[a] == score[b] && a < b);
        });
        size_t first = selection.kept.size();
        for (int64_t i : selection.order) {
          if (static_cast<int64_t>(selection.kept.size() - first) / 3 >= most) break;
          Box candidate = box_of(box + i * 4, center_);
          bool free = true;
          for (size_t k = first; free && k < selection.kept.size(); k += 3) {
            free =
                overlap(candidate, box_of(box + selection.kept[k + 2] * 4, center_)) <= threshold;
          }
          if (free) selection.kept.insert(selection.kept.end(), {n, c, i});
        }
      }
    }
  }

  bool center_;
};

class RoiAlign : public PerRequestOp {
 public:
  explicit RoiAlign(const NodeSpec& spec)
      : height_(spec.int_or("output_height", 1)),
        width_(spec.int_or("output_width", 1)),
        sampling_(spec.int_or("sampling_ratio", 0)),
        scale_(spec.float_or("spatial_scale", 1)) {
    require_inputs(spec, 3);
    for (size_t i : {0u, 1u}) {
      if (spec.input_dtypes[i] != DType::kF32) unsupported_dtype(spec, i);
    }
    if (spec.input_dtypes[2] != DType::kI64) unsupported_dtype(spec, 2);
    std::string mode = spec.string_or("mode", "avg");
    if (mode != "avg" && mode != "max") spec.unsupported(str("mode '", mode, "'"));
    largest_ = mode == "max";
    std::string fallback = spec.opset < 16 ? "output_half_pixel" : "half_pixel";
    half_pixel_ = spec.string_or("coordinate_transformation_mode", fallback) == "half_pixel";
  }

  void infer(InputViews inputs, std::span<Shape> outputs) const override {
    const Shape& x = inputs[0].shape;
    const Shape& rois = inputs[1].shape;
    bool fits =
        x.rank() == 4 && rois.rank() == 2 && rois[1] == 4 && inputs[2].elements() == rois[0];
    if (!fits || x[2] == 0 || x[3] == 0) {
      fail(ErrorKind::kShapeMismatch, "got images of shape ", to_string(x), " and regions of ",
           to_string(rois), ", expected [N, C, H, W] and [regions, 4]");
    }
    for (int64_t image : inputs[2].span<int64_t>()) {
      if (image >= 0 && image < x[0]) continue;
      fail(ErrorKind::kExecution, "got image ", image, ", expected one below ", x[0]);
    }
    check_regions(inputs[1].span<float>(), x);
    outputs[0] = {rois[0], x[1], height_, width_};
  }

  void run_one(InputViews inputs, OutputViews outputs) const override {
    const Shape& x = inputs[0].shape;
    float offset = half_pixel_ ? 0.5f : 0.0f;
    float* to = outputs[0].as<float>();
    for (int64_t n = 0; n < inputs[1].shape[0]; ++n) {
      const float* roi = inputs[1].as<float>() + n * 4;
      float left = roi[0] * scale_ - offset, top = roi[1] * scale_ - offset;
      float width = roi[2] * scale_ - offset - left, height = roi[3] * scale_ - offset - top;
      if (!half_pixel_) {
        width = std::max(width, 1.0f);
        height = std::max(height, 1.0f);
      }
      Grid grid{.top = top,
                .left = left,
                .bin_h = height / static_cast<float>(height_),
                .bin_w = width / static_cast<float>(width_),
                .rows = 0,
                .columns = 0};
      grid.rows = sampling_ > 0 ? sampling_ : static_cast<int64_t>(std::ceil(grid.bin_h));
      grid.columns = sampling_ > 0 ? sampling_ : static_cast<int64_t>(std::ceil(grid.bin_w));
      const float* image = inputs[0].as<float>() + inputs[2].as<int64_t>()[n] * x[1] * x[2] * x[3];
      for (int64_t c = 0; c < x[1]; ++c, image += x[2] * x[3]) {
        for (int64_t i = 0; i < height_ * width_; ++i) {
          *to++ = pool(image, x[2], x[3], grid, i / width_, i % width_);
        }
      }
    }
  }

 private:
  // How many samples a region takes may follow from its size: no request is to keep a thread for
  // minutes.
  void check_regions(std::span<const float> regions, const Shape& x) const {
    constexpr float kMost = 1e6f, kImages = 16;
    for (size_t i = 0; i < regions.size(); ++i) {
      if (!(std::abs(regions[i]) <= kMost)) {
        fail(ErrorKind::kExecution, "got a region at ", regions[i]);
      }
      if (sampling_ > 0 || i % 4 < 2) continue;
      const float length = (regions[i] - regions[i - 2]) * scale_;
      const int64_t image = x[i % 4 == 2 ? 3 : 2];
      if (length > kImages * static_cast<float>(image)) {
        fail(ErrorKind::kExecution, "got a region of ", length, " pixels in an image of ", image,
             ", expected at most 16 times as many");
      }
    }
  }

  struct Grid {
    float top, left, bin_h, bin_w;
    int64_t rows, columns;
  };

  float pool(const float* image, int64_t height, int64_t width, const Grid& grid, int64_t row,
             int64_t column) const {
    float total = 0;
    bool first = true;
    for (int64_t iy = 0; iy < grid.rows; ++iy) {
      float y = grid.top + static_cast<float>(row) * grid.bin_h +
                (static_cast<float>(iy) + 0.5f) * grid.bin_h / static_cast<float>(grid.rows);
      for (int64_t ix = 0; ix < grid.columns; ++ix) {
        float x = grid.left + static_cast<float>(column) * grid.bin_w +
                  (static_cast<float>(ix) + 0.5f) * grid.bin_w / static_cast<float>(grid.columns);
        float value = sample(image, height, width, y, x);
        total = !largest_ ? total + value : first ? value : std::max(total, value);
        first = false;
      }
    }
    return largest_ ? total
                    : total / static_cast<float>(std::max<int64_t>(1, grid.rows * grid.columns));
  }

  // For "max" ONNX takes the largest of the four weighted neighbours, not their sum.
  float sample(const float* image, int64_t height, int64_t width, float y, float x) const {
    if (!(y >= -1 && y <= static_cast<float>(height) && x >= -1 &&
          x <= static_cast<float>(width))) {
      return 0;
    }
    y = std::clamp(y, 0.0f, static_cast<float>(height - 1));
    x = std::clamp(x, 0.0f, static_cast<float>(width - 1));
    auto y0 = static_cast<int64_t>(y), x0 = static_cast<int64_t>(x);
    int64_t y1 = std::min(y0 + 1, height - 1), x1 = std::min(x0 + 1, width - 1);
    float ly = y - static_cast<float>(y0), lx = x - static_cast<float>(x0);
    float a = (1 - ly) * (1 - lx) * image[y0 * width + x0],
          b = (1 - ly) * lx * image[y0 * width + x1];
    float c = ly * (1 - lx) * image[y1 * width + x0], d = ly * lx * image[y1 * width + x1];
    return largest_ ? std::max(std::max(a, b), std::max(c, d)) : a + b + c + d;
  }

  int64_t height_;
  int64_t width_;
  int64_t sampling_;
  float scale_;
  bool largest_ = false;
  bool half_pixel_ = true;
};

template <class T>
std::unique_ptr<Op> make(const NodeSpec& spec) {
  return std::make_unique<T>(spec);
}

}  // namespace

void register_boxes(OpRegistry& registry) {
  registry.add("NonMaxSuppression", make<NonMaxSuppression>);
  registry.add("RoiAlign", make<RoiAlign>);
}

}  // namespace headrace
