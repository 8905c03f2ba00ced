#include "ops/linear/static_int8.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/op.h"

namespace headrace {

HEADRACE_DECLARE_KERNELS(StaticKernels, static_kernels)
#if defined(HEADRACE_KERNELS_X86)
namespace avx512_vnni {
extern const StaticKernels static_kernels;
}
#elif defined(HEADRACE_KERNELS_NEON)
namespace neon_dot {
extern const StaticKernels static_kernels;
}
namespace neon_bf16 {
extern const StaticKernels static_kernels;
}
#endif

const StaticKernels& static_kernels_for(Isa isa, bool wide) {
  // Pairs of 16-bit integers hold any weight.
  if (wide) return HEADRACE_KERNELS(isa, static_kernels);
#if defined(HEADRACE_KERNELS_X86)
  if (isa >= Isa::kAvx512Vnni) return avx512_vnni::static_kernels;
#elif defined(HEADRACE_KERNELS_NEON)
  if (isa == Isa::kNeonBf16) return neon_bf16::static_kernels;
  if (isa == Isa::kNeonDot) return neon_dot::static_kernels;
#endif
  return HEADRACE_KERNELS(isa, static_kernels);
}

namespace {

// What a float32 Y holds, or a byte with that zero point, in steps.
StaticBounds bounds_of(const StaticTensor* y) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  if (y == nullptr) return {-kInfinity, kInfinity};
  return {static_cast<float>(-y->byte.zero), static_cast<float>(255 - y->byte.zero)};
}

// Those between the bounds of an activation, too.
StaticBounds clipped(const NodeSpec& node, StaticBounds bounds, double scale) {
  Epilogue e = epilogue_of(node);
  switch (e.activation) {
    case Activation::kNone:
      return bounds;
    case Activation::kRelu:
      return {std::max(bounds.low, 0.0f), std::max(bounds.high, 0.0f)};
    case Activation::kClip: {
      auto low = static_cast<float>(double{e.clip_min} / scale);
      auto high = static_cast<float>(double{e.clip_max} / scale);
      auto inside = [&](float x) { return std::min(std::max(x, low), high); };
      return {inside(bounds.low), inside(bounds.high)};
    }
    default:
      node.unsupported(str("got activation '", node.string_or("activation", "none"),
                           "', expected none, relu or clip"));
  }
}

}  // namespace

StaticTensor::StaticTensor(const NodeSpec& node, std::string_view prefix, DType dtype)
    : scale(double{node.float_or(str(prefix, "_scale"), 0.0f)}) {
  if (!std::isfinite(scale) || scale <= 0.0) {
    node.invalid(str("got ", prefix, "_scale ", scale, ", expected a positive number"));
  }
  if (dtype != DType::kU8 && dtype != DType::kI8) {
    node.unsupported(
        str("got a quantised tensor of dtype ", name_of(dtype), ", expected uint8 or int8"));
  }
  int32_t shift = dtype == DType::kI8 ? 128 : 0;
  int64_t zero = node.int_or(str(prefix, "_zero_point"), 0);
  if (zero + shift < 0 || zero + shift > 255) {
    node.invalid(
        str("got ", prefix, "_zero_point ", zero, ", which ", name_of(dtype), " does not hold"));
  }
  byte = {static_cast<int32_t>(zero) + shift, static_cast<uint8_t>(shift)};
}

StaticBounds static_bounds(const NodeSpec& node, const StaticTensor& y) {
  return clipped(node, bounds_of(&y), y.scale);
}

StaticQuantization::StaticQuantization(const NodeSpec& node, size_t residual_input)
    : x_(node, "x", node.input_dtypes.at(0)), has_residual_(node.has_input(residual_input)) {
  finish_.floats = node.output_dtypes.at(0) == DType::kF32;
  StaticTensor y;
  if (!finish_.floats) y = StaticTensor(node, "y", node.output_dtypes[0]);
  StaticBounds bounds = clipped(node, bounds_of(finish_.floats ? nullptr : &y), y.scale);
  finish_.y = y.byte;
  finish_.low = bounds.low;
  finish_.high = bounds.high;
  first_scale_ = y.scale;
  if (!has_residual_) return;
  if (finish_.floats) node.unsupported("a residual where the output is float32");
  StaticTensor residual(node, "residual", node.input_dtypes[residual_input]);
  finish_.residual_zero = residual.byte;
  finish_.residual_factor = static_cast<float>(residual.scale / y.scale);
  if (!node.has("product_scale")) return;
  bool is_signed = node.string_or("product_dtype", "uint8") == "int8";
  StaticTensor product(node, "product", is_signed ? DType::kI8 : DType::kU8);
  StaticBounds own = bounds_of(&product);
  finish_.rounds_product = true;
  finish_.product_low = own.low;
  finish_.product_high = own.high;
  finish_.product_factor = static_cast<float>(product.scale / y.scale);
  first_scale_ = product.scale;
}

void StaticQuantization::write_columns(int32_t held, const StaticColumns& columns,
                                       std::byte* to) const {
  const int64_t padded = columns.padded();
  auto* offsets = reinterpret_cast<int32_t*>(to);
  auto* factors = reinterpret_cast<float*>(offsets + padded);
  float* biases = factors + padded;
  std::fill_n(to, column_bytes(padded), std::byte{0});
  for (int64_t j = 0; j < columns.count; ++j) {
    int64_t at = j / columns.group * columns.group_padded + j % columns.group;
    double factor = x_.scale * double{columns.scales[j]} / first_scale_;
    factors[at] = static_cast<float>(factor);
    int64_t offset = -int64_t{held} * columns.sums[j];
    if (columns.bias.dtype == DType::kF32) {
      biases[at] = static_cast<float>(double{columns.bias.as<float>()[j]} / first_scale_);
    } else if (columns.bias.present()) {
      int64_t added = columns.bias.as<int32_t>()[j];
      // One that leaves sums no room in 32 bits is added after the scale.
      if (std::abs(added) <= kMaxStaticBias) {
        offset += added;
      } else {
        biases[at] = static_cast<float>(static_cast<double>(added) * factor);
      }
    }
    offsets[at] = static_cast<int32_t>(offset);
  }
}

void StaticQuantization::point_at_columns(const std::byte* columns, int64_t padded,
                                          StaticFinish* finish) {
  finish->offset = reinterpret_cast<const int32_t*>(columns);
  finish->factor = reinterpret_cast<const float*>(finish->offset + padded);
  finish->bias = finish->factor + padded;
}

}  // namespace headrace
