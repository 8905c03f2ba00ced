// Element types of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace headrace {

enum class DType : uint8_t {
  kNone,  // an absent optional input
  kBool,
  kU8,
  kU16,
  kU32,
  kU64,
  kI8,
  kI16,
  kI32,
  kI64,
  kF16,
  kBF16,
  kF32,
  kF64,
  kString,
};

// One element of a string tensor. It points into memory of the Request, of a constant or of the
// arena, and never owns it: string tensors stay trivially copyable like every other tensor.
struct StringRef {
  const char* data;
  int64_t size;
  std::string_view view() const { return {data, static_cast<size_t>(size)}; }
};

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kNone:
      return 0;
    case DType::kBool:
    case DType::kU8:
    case DType::kI8:
      return 1;
    case DType::kU16:
    case DType::kI16:
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU32:
    case DType::kI32:
    case DType::kF32:
      return 4;
    case DType::kU64:
    case DType::kI64:
    case DType::kF64:
      return 8;
    case DType::kString:
      return sizeof(StringRef);
  }
  return 0;
}

// numpy's name for the dtype; "string" and "bfloat16" where numpy has none.
constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kNone:
      return "none";
    case DType::kBool:
      return "bool";
    case DType::kU8:
      return "uint8";
    case DType::kU16:
      return "uint16";
    case DType::kU32:
      return "uint32";
    case DType::kU64:
      return "uint64";
    case DType::kI8:
      return "int8";
    case DType::kI16:
      return "int16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF32:
      return "float32";
    case DType::kF64:
      return "float64";
    case DType::kString:
      return "string";
  }
  return "?";
}

// The inverse of name_of; kNone for a name that is not a dtype.
constexpr DType dtype_named(std::string_view name) {
  for (int i = 1; i <= static_cast<int>(DType::kString); ++i) {
    if (name_of(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  }
  return DType::kNone;
}

// The C++ type that holds an element, as a template argument for typed kernels.
template <class T>
inline constexpr DType kDTypeOf = DType::kNone;
template <>
inline constexpr DType kDTypeOf<bool> = DType::kBool;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::kU8;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::kU16;
template <>
inline constexpr DType kDTypeOf<uint32_t> = DType::kU32;
template <>
inline constexpr DType kDTypeOf<uint64_t> = DType::kU64;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::kI8;
template <>
inline constexpr DType kDTypeOf<int16_t> = DType::kI16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<StringRef> = DType::kString;

}  // namespace headrace
