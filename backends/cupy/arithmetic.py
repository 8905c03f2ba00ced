"""Elementwise ops, comparisons, reductions and products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from headrace.backends.cupy import kernels
from headrace.backends.cupy.arrays import (
    Array,
    dtype_name,
    dtype_of,
    ints,
    is_float,
    library,
    number,
    size_of,
    to_numpy,
)  # fmt: skip
from headrace.backends.cupy.ops import Maker

from headrace.graph.script import Attributes, Untranslated

# log(erfc(x) * exp(x * x) / t) for x >= 0 and t = 2 / (2 + x), as Chebyshev polynomials of 2 * t - 1: fitted by least
# squares to scipy.special.erfcx. The error of erf made of it is below 6e-15.
_ERFC = (
    -0.6513268598908551, 0.6419697923564901, 0.019476473204185947, -0.009561514786808582, -0.0009465953444819824,
    0.00036683949785250297, 4.2523324806944056e-05, -2.027857811274113e-05, -1.6242900045076478e-06,
    1.3036558354955512e-06, 1.5626441816744533e-08, -8.523809587857432e-08, 6.5290542646731435e-09,
    5.059343423650225e-09, -9.913642019009687e-10, -2.2736524460450885e-10, 9.646792449729244e-11,
    2.3939694579489224e-12, -6.886029096915931e-12, 8.946321792302646e-13, 3.1332322346655807e-13,
    -1.1267271529977807e-13, 5.424113030778948e-16,
)  # fmt: skip


def plain(function: Callable[..., Any]) -> Maker:
    """A maker for ops without attributes."""
    return lambda _attributes, _opset: function


def _named(name: str) -> Maker:
    """A maker for ops that the array API has under `name`."""

    def run(*arrays: Array) -> Array:
        return getattr(library(arrays[0]), name)(*arrays)

    return plain(run)


def erf(x: Array) -> Array:
    """The error function, in float64 within."""
    xp = library(x)
    wide = xp.astype(x, xp.float64)
    size = xp.abs(wide)
    t = 2.0 / (2.0 + size)
    y, before, last = 4.0 * t - 2.0, xp.zeros_like(t), xp.zeros_like(t)
    for coefficient in reversed(_ERFC[1:]):
        before, last = y * before - last + coefficient, before
    rest = t * xp.exp(-size * size + 0.5 * y * before - last + _ERFC[0])
    return xp.astype(xp.sign(wide) * (1.0 - rest), x.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    xp = library(x)
    small = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def gelu(x: Array) -> Array:
    """X times the normal distribution's share below x."""
    fast = kernels.unary("gelu_erf", x)
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5))) if fast is None else fast


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of `gelu`."""
    fast = kernels.unary("gelu_tanh", x)
    if fast is not None:
        return fast
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + library(x).tanh(inner))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    xp = library(x)
    return xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(x, xp.zeros_like(x))


def relu(x: Array) -> Array:
    """X where it is positive, else 0."""
    return library(x).maximum(x, library(x).zeros_like(x))


def clip(x: Array, low: Any, high: Any) -> Array:
    """X between Python numbers, either of which may be None."""
    xp = library(x)
    if low is not None:
        x = xp.maximum(x, xp.full_like(x, low))
    return x if high is None else xp.minimum(x, xp.full_like(x, high))


def _divide(a: Array, b: Array) -> Array:
    xp = library(a)
    if is_float(a):
        return xp.divide(a, b)
    if xp.isdtype(a.dtype, "unsigned integer"):
        return xp.floor_divide(a, b)
    return xp.sign(a) * xp.sign(b) * xp.floor_divide(xp.abs(a), xp.abs(b))


def _mod(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if not attributes.get("fmod", 0):
        return lambda a, b: library(a).remainder(a, b)
    # The sign of the dividend, as C has it.
    return lambda a, b: library(a).sign(a) * library(a).remainder(library(a).abs(a), library(a).abs(b))


def _pow(a: Array, b: Array) -> Array:
    xp = library(a)
    if a.dtype == b.dtype and is_float(a):
        return xp.pow(a, b)
    return xp.astype(xp.pow(xp.astype(a, xp.float64), xp.astype(b, xp.float64)), a.dtype)


def _variadic(name: str) -> Maker:
    def run(first: Array, *rest: Array) -> Array:
        for array in rest:
            first = getattr(library(first), name)(first, array)
        return first

    return plain(run)


def _mean(*arrays: Array) -> Array:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total / len(arrays)


def _cast(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    name = dtype_name(attributes.get("to"))

    def run(x: Array) -> Array:
        if x.dtype == object:  # texts: always on the host
            numbers = [float(text) for text in x.reshape(-1)]
            return np.array(numbers).reshape(x.shape).astype(dtype_of(np, name))
        xp = library(x)
        if name.startswith("uint") and is_float(x):
            # Negative numbers wrap around, as ONNX's own evaluator has it; straight from floats they may do anything.
            x = xp.astype(x, xp.int64)
        return xp.astype(x, dtype_of(xp, name))

    return run


def _clip(attributes: Attributes, opset: int) -> Callable[..., Any]:
    if opset < 11:
        low_high = attributes.get("min"), attributes.get("max")
        return lambda x: clip(x, *low_high)

    def run(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
        xp = library(x)
        if low is not None:
            x = xp.maximum(x, low)
        return x if high is None else xp.minimum(x, high)

    return run


def _gelu(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    return gelu_tanh if attributes.get("approximate", "none") == "tanh" else gelu


def _is_inf(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    negative, positive = attributes.get("detect_negative", 1), attributes.get("detect_positive", 1)

    def run(x: Array) -> Array:
        xp = library(x)
        infinite = xp.isinf(x)
        return infinite & (((x < 0) & bool(negative)) | ((x > 0) & bool(positive)))

    return run


def _gemm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)

    def run(a: Array, b: Array, c: Array | None = None) -> Array:
        product = library(a).matmul(a.T if trans_a else a, b.T if trans_b else b)
        if alpha != 1:
            product = product * alpha
        return product if c is None else product + (c if beta == 1 else c * beta)

    return run


def _shrink(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    bias, limit = attributes.get("bias", 0.0), attributes.get("lambd", 0.5)

    def run(x: Array) -> Array:
        xp = library(x)
        return xp.astype(xp.where(x < -limit, x + bias, xp.where(x > limit, x - bias, xp.zeros_like(x))), x.dtype)

    return run


def _branches(function: Callable[..., Array], **defaults: float) -> Maker:
    """A maker for activations of one input with numbers as attributes."""

    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        numbers = {name: attributes.get(name, default) for name, default in defaults.items()}
        return lambda x: function(library(x), x, **numbers)

    return make


def _reduce(function: Callable[[Any, Array, Any, bool], Array], *, empty: float | None = None) -> Maker:
    """`empty` is the result over no elements, where the library has none."""

    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        keep, noop = bool(attributes.get("keepdims", 1)), attributes.get("noop_with_empty_axes", 0)
        fixed = attributes.get("axes")

        def run(x: Array, given: Array | None = None) -> Array:
            axes = (fixed if given is None else ints(given)) or None
            if axes is None and noop:
                return function(library(x), x, (), keep)
            along = tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in axes)
            if empty is not None and not all(x.shape[axis] for axis in along):
                return _of_nothing(x, along, keep, empty)
            return function(library(x), x, along, keep)

        return run

    return make


def _of_nothing(x: Array, along: tuple[int, ...], keep: bool, value: float) -> Array:
    xp = library(x)
    dims = [1 if axis in along else dim for axis, dim in enumerate(x.shape) if keep or axis not in along]
    if not is_float(x):
        if xp.isdtype(x.dtype, "bool"):
            value = value > 0
        else:
            value = xp.iinfo(x.dtype).max if value > 0 else xp.iinfo(x.dtype).min
    return xp.full(tuple(dims), value, dtype=x.dtype)


def _extreme(name: str) -> Callable[[Any, Array, Any, bool], Array]:
    def run(xp: Any, x: Array, axes: Any, keep: bool) -> Array:
        if xp.isdtype(x.dtype, "bool"):
            return getattr(xp, "any" if name == "max" else "all")(x, axis=axes, keepdims=keep)
        return getattr(xp, name)(x, axis=axes, keepdims=keep)

    return run


def _sum(xp: Any, x: Array, axes: Any, keep: bool) -> Array:
    return xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _average(xp: Any, x: Array, axes: Any, keep: bool) -> Array:
    if is_float(x):
        return xp.mean(x, axis=axes, keepdims=keep)
    return _divide(_sum(xp, x, axes, keep), xp.asarray(size_of(x.shape[axis] for axis in axes), dtype=x.dtype))


def _log_sum_exp(xp: Any, x: Array, axes: Any, keep: bool) -> Array:
    if not is_float(x):
        x = xp.astype(x, xp.float64)
    if not size_of(x.shape):
        return xp.log(_sum(xp, xp.exp(x), axes, keep))
    top = xp.max(x, axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.log(_sum(xp, xp.exp(x - top), axes, True)) + top
    return total if keep else xp.squeeze(total, axis=axes)


def _wide(function: Callable[[Any, Array, Any, bool], Array]) -> Callable[[Any, Array, Any, bool], Array]:
    """`function` of integers, computed in float64 and brought back."""

    def run(xp: Any, x: Array, axes: Any, keep: bool) -> Array:
        if is_float(x):
            return function(xp, x, axes, keep)
        return xp.astype(function(xp, xp.astype(x, xp.float64), axes, keep), x.dtype)

    return run


def _cumsum(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    exclusive, backwards = attributes.get("exclusive", 0), attributes.get("reverse", 0)

    def run(x: Array, along: Array) -> Array:
        xp, axis = library(x), number(along) % x.ndim
        if backwards:
            x = xp.flip(x, axis=axis)
        total = xp.cumulative_sum(x, axis=axis, dtype=x.dtype, include_initial=bool(exclusive))
        if exclusive:
            total = total[(slice(None),) * axis + (slice(0, x.shape[axis]),)]
        return xp.flip(total, axis=axis) if backwards else total

    return run


def _equal(a: Array, b: Array) -> Array:
    if a.dtype == object:
        return np.asarray(to_numpy(a) == to_numpy(b), dtype=bool)
    return library(a).equal(a, b)


def _bit_shift(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    name = {"LEFT": "bitwise_left_shift", "RIGHT": "bitwise_right_shift"}.get(attributes.get("direction"))
    if name is None:
        raise Untranslated(f"got direction {attributes.get('direction')!r}, expected LEFT or RIGHT")
    return lambda a, b: getattr(library(a), name)(a, b)


_SAME_NAMES = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Less": "less", "LessOrEqual": "less_equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor", "Not": "logical_not", "Where": "where", "IsNaN": "isnan", "Abs": "abs", "Neg": "negative",
    "Sign": "sign", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Exp": "exp", "Log": "log", "Floor": "floor",
    "Ceil": "ceil", "Round": "round", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos",
    "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh",
    "Atanh": "atanh", "MatMul": "matmul", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor", "BitwiseNot": "bitwise_invert",
}  # fmt: skip

_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}

OPS: dict[str, Maker] = {op: _named(name) for op, name in _SAME_NAMES.items()} | {
    "Reciprocal": plain(lambda x: 1 / x),
    "Div": plain(_divide),
    "Mod": _mod,
    "Pow": plain(_pow),
    "Equal": plain(_equal),
    "BitShift": _bit_shift,
    "Max": _variadic("maximum"),
    "Min": _variadic("minimum"),
    "Sum": _variadic("add"),
    "Mean": plain(_mean),
    "IsInf": _is_inf,
    "Cast": _cast,
    "Clip": _clip,
    "Erf": plain(erf),
    "Sigmoid": plain(sigmoid),
    "Relu": plain(relu),
    "LeakyRelu": _branches(lambda xp, x, alpha: xp.where(x < 0, x * alpha, x), alpha=0.01),
    "ThresholdedRelu": _branches(lambda xp, x, alpha: xp.where(x > alpha, x, xp.zeros_like(x)), alpha=1.0),
    "Elu": _branches(lambda xp, x, alpha: xp.where(x < 0, xp.expm1(x) * alpha, x), alpha=1.0),
    "Celu": _branches(lambda xp, x, alpha: xp.where(x < 0, xp.expm1(x / alpha) * alpha, x), alpha=1.0),
    "Selu": _branches(lambda xp, x, alpha, gamma: gamma * xp.where(x < 0, xp.expm1(x) * alpha, x), **_SELU),
    "HardSigmoid": _branches(lambda _xp, x, alpha, beta: clip(x * alpha + beta, 0, 1), alpha=0.2, beta=0.5),
    "HardSwish": plain(lambda x: x * clip(x / 6 + 0.5, 0, 1)),
    "Swish": _branches(lambda _xp, x, alpha: x * sigmoid(x * alpha), alpha=1.0),
    "Softplus": plain(softplus),
    "Softsign": plain(lambda x: x / (1 + library(x).abs(x))),
    "Mish": plain(lambda x: x * library(x).tanh(softplus(x))),
    "PRelu": plain(lambda x, slope: library(x).where(x < 0, x * slope, x)),
    "Shrink": _shrink,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "CumSum": _cumsum,
    "ReduceSum": _reduce(_sum),
    "ReduceMean": _reduce(_average),
    "ReduceMax": _reduce(_extreme("max"), empty=-math.inf),
    "ReduceMin": _reduce(_extreme("min"), empty=math.inf),
    "ReduceProd": _reduce(lambda xp, x, axes, keep: xp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)),
    "ReduceL1": _reduce(lambda xp, x, axes, keep: _sum(xp, xp.abs(x), axes, keep)),
    "ReduceL2": _reduce(_wide(lambda xp, x, axes, keep: xp.sqrt(_sum(xp, x * x, axes, keep)))),
    "ReduceSumSquare": _reduce(lambda xp, x, axes, keep: _sum(xp, x * x, axes, keep)),
    "ReduceLogSum": _reduce(_wide(lambda xp, x, axes, keep: xp.log(_sum(xp, x, axes, keep)))),
    "ReduceLogSumExp": _reduce(_wide(_log_sum_exp)),
}
