// What arithmetic does to one pair of elements, where the dtype needs care.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/visit.h"

namespace headrace {

// Integers wrap around, as in numpy; signed overflow would be undefined in C++.
template <class C>
using WrapType =
    std::conditional_t<std::is_integral_v<C> && sizeof(C) < 4, uint32_t,
                       typename std::conditional_t<std::is_integral_v<C>, std::make_unsigned<C>,
                                                   std::type_identity<C>>::type>;

struct AddOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    return static_cast<T>(WrapType<C>(C(a)) + WrapType<C>(C(b)));
  }
};

struct SubOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    return static_cast<T>(WrapType<C>(C(a)) - WrapType<C>(C(b)));
  }
};

struct MulOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    return static_cast<T>(WrapType<C>(C(a)) * WrapType<C>(C(b)));
  }
};

// Integers truncate towards zero; x / 0 is 0, since ONNX leaves it open and a trap is no answer.
struct DivOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    if constexpr (std::is_integral_v<C>) {
      if (b == 0) return 0;
      if constexpr (std::is_signed_v<C>) {
        if (b == -1) return SubOf()(T(0), a);
      }
    }
    return static_cast<T>(C(a) / C(b));
  }
};

struct MaxOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    C x = C(a), y = C(b);
    if constexpr (std::is_floating_point_v<C>) {
      if (std::isnan(x)) return a;
    }
    return x > y ? a : b;
  }
};

struct MinOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    C x = C(a), y = C(b);
    if constexpr (std::is_floating_point_v<C>) {
      if (std::isnan(x)) return a;
    }
    return x < y ? a : b;
  }
};

// The remainder with the dividend's sign, as C's % and fmod.
struct RemainderOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    if constexpr (std::is_integral_v<C>) {
      if (b == 0) return 0;
      if constexpr (std::is_signed_v<C>) {
        if (b == -1) return 0;
      }
      return static_cast<T>(a % b);
    } else {
      return static_cast<T>(std::fmod(C(a), C(b)));
    }
  }
};

// The remainder with the divisor's sign, as Python's %.
struct ModuloOf {
  template <class T>
  T operator()(T a, T b) const {
    using C = ComputeType<T>;
    C rest = C(RemainderOf()(a, b));
    if constexpr (std::is_floating_point_v<C>) {
      // Not by way of the rounded T: the sum must be rounded once.
      rest = std::fmod(C(a), C(b));
      if (rest == 0) return static_cast<T>(std::copysign(C(0), C(b)));
    }
    if constexpr (std::is_signed_v<C>) {
      if (rest != 0 && (rest < 0) != (C(b) < 0)) rest = static_cast<C>(rest + C(b));
    }
    return static_cast<T>(rest);
  }
};

struct PReluOf {
  template <class T>
  T operator()(T x, T slope) const {
    using C = ComputeType<T>;
    return C(x) < C(0) ? MulOf()(x, slope) : x;
  }
};

}  // namespace headrace
