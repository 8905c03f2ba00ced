"""Ops on quantised tensors: ONNX's two, and Headrace's products and sums of bytes, computed in float32.

``headrace.graph.functions`` has the same in standard ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from headrace.backends.cupy.arrays import Array, dtype_name, dtype_of, library, same_place
from headrace.backends.cupy.fused import activation_of, channels_last
from headrace.backends.cupy.networks import convolution
from headrace.backends.cupy.ops import Maker

from headrace.graph.script import Attributes, Untranslated


def dequantized(x: Array, scale: Any, zero: Any) -> Array:
    """``(x - zero) * scale`` in float32; scale and zero are numbers or arrays that broadcast."""
    return (library(x).astype(x, library(x).float32) - zero) * scale


def quantized(x: Array, scale: Any, zero: Any, name: str) -> Array:
    """`x` in steps of `scale`, rounded half to even, as the nearest integers that dtype `name` has."""
    xp = library(x)
    info = xp.iinfo(dtype_of(xp, name))
    steps = xp.round(x / scale) + zero
    steps = xp.where(xp.isnan(steps), xp.zeros_like(steps), steps)
    # In float64, which holds the ends of every such range.
    wide = xp.astype(steps, xp.float64)
    wide = xp.minimum(xp.maximum(wide, xp.full_like(wide, info.min)), xp.full_like(wide, info.max))
    return xp.astype(wide, dtype_of(xp, name))


def _along(parameter: Array, x: Array, axis: int) -> Array:
    """A scale or zero point, one for `x` or one per element of `axis`, so that it broadcasts."""
    if parameter.ndim == 0 or math.prod(parameter.shape) == 1:
        return library(parameter).reshape(parameter, ())
    shape = [1] * x.ndim
    shape[axis] = parameter.shape[0]
    return library(parameter).reshape(parameter, tuple(shape))


def _check_linear(attributes: Attributes) -> None:
    if attributes.get("block_size", 0):
        raise Untranslated("blocks of one scale")


def _quantize_linear(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    _check_linear(attributes)
    axis, name = attributes.get("axis", 1), dtype_name(attributes.output_type(0))
    if name not in ("uint8", "int8", "uint16", "int16"):
        raise Untranslated(f"quantised to {name}")

    def run(x: Array, scale: Array, zero: Array | None = None) -> Array:
        xp = library(x)
        offset: Any = 0.0 if zero is None else xp.astype(_along(zero, x, axis), xp.float32)
        return quantized(x, _along(scale, x, axis), offset, name)

    return run


def _dequantize_linear(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    _check_linear(attributes)
    axis = attributes.get("axis", 1)
    if dtype_name(attributes.output_type(0)) != "float32":
        raise Untranslated("dequantised to another dtype than float32")

    def run(x: Array, scale: Array, zero: Array | None = None) -> Array:
        xp = library(x)
        offset: Any = 0.0 if zero is None else xp.astype(_along(zero, x, axis), xp.float32)
        return dequantized(x, _along(scale, x, axis), offset)

    return run


class _Steps:
    """The quantisation that a fused op's attributes name by a prefix."""

    def __init__(self, attributes: Attributes, prefix: str) -> None:
        self.scale = float(np.float32(attributes.get(f"{prefix}_scale")))
        self.zero = float(attributes.get(f"{prefix}_zero_point"))
        self.dtype = str(np.dtype(attributes.get(f"{prefix}_dtype")))

    def read(self, x: Array) -> Array:
        return dequantized(x, self.scale, self.zero)

    def write(self, x: Array) -> Array:
        return quantized(x, self.scale, self.zero, self.dtype)


def _product(is_convolution: bool) -> Maker:
    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        activate = activation_of(attributes)
        x_steps = _Steps(attributes, "x")
        given = {name: _Steps(attributes, name) for name in ("residual", "product", "y")
                 if attributes.get(f"{name}_scale") is not None}  # fmt: skip
        multiply: Callable[..., Array] = _multiplied
        if is_convolution:
            multiply = convolution(attributes)
            if attributes.get("layout", "nchw") == "nhwc":
                multiply = channels_last(multiply)

        def run(
            x: Array, weights: Array, scales: Array, bias: Array | None = None, residual: Array | None = None
        ) -> Array:
            xp = library(x)
            each = xp.reshape(scales, (-1, *[1] * (weights.ndim - 1))) if is_convolution else scales
            y = multiply(x_steps.read(x), xp.astype(weights, xp.float32) * each, None)
            if bias is not None:
                if xp.isdtype(bias.dtype, "integral"):
                    bias = xp.astype(bias, xp.float32) * (scales * x_steps.scale)
                if is_convolution and attributes.get("layout", "nchw") == "nchw":
                    bias = xp.reshape(bias, (-1, *[1] * (weights.ndim - 2)))
                y = y + bias
            if residual is not None:
                if "product" in given:
                    y = given["product"].read(given["product"].write(y))
                y = y + given["residual"].read(residual)
            y = activate(y)
            return given["y"].write(y) if "y" in given else y

        return run

    return make


def _multiplied(x: Array, weights: Array, _bias: None) -> Array:
    return library(x).matmul(x, weights)


def _add(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    a_steps, b_steps, y_steps = (_Steps(attributes, prefix) for prefix in "aby")
    activate = activation_of(attributes)
    return lambda a, b: y_steps.write(activate(a_steps.read(a) + b_steps.read(b)))


def _map(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    name = dtype_name(attributes.output_type(0))

    def run(x: Array, table: Array) -> Array:
        xp = library(x)
        at = xp.astype(x, xp.int64)
        at = xp.reshape(xp.where(at < 0, at + 256, at), (-1,))
        found = xp.astype(xp.reshape(xp.take(same_place(table, x), at, axis=0), x.shape), xp.int64)
        # The table may hold the bits of signed bytes.
        if name == "int8":
            found = xp.where(found > 127, found - 256, found)
        return xp.astype(found, dtype_of(xp, name))

    return run


OPS: dict[str, Maker] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "headrace.QuantizedConv": _product(is_convolution=True),
    "headrace.QuantizedLinear": _product(is_convolution=False),
    "headrace.QuantizedAdd": _add,
    "headrace.QuantizedMap": _map,
}
