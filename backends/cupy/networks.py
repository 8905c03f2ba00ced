"""Layers of neural networks: convolutions, pools, norms, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from headrace.backends.cupy import kernels
from headrace.backends.cupy.arithmetic import plain
from headrace.backends.cupy.arrays import Array, library, size_of
from headrace.backends.cupy.ops import Maker
from headrace.backends.cupy.shapes import pad

from headrace.graph.script import Attributes, Untranslated
from headrace.graph.windows import Windows

# A convolution's columns take this many bytes at most at once, unless one image's take more.
_COLUMNS_BYTES_MAX = 1 << 26


def _windows(attributes: Attributes) -> Callable[[Array, list[int]], Windows]:
    def of(x: Array, kernel: list[int]) -> Windows:
        return Windows.of(attributes, list(x.shape[2:]), kernel)

    return of


def _offsets(x: Array, windows: Windows) -> Iterator[Array]:
    """What each element of the kernel meets in padded `x`, as [N, C, outputs...], in the kernel's order."""
    for offset in product(*map(range, windows.kernel)):
        spatial = tuple(
            slice(at * dilation, at * dilation + (out - 1) * stride + 1, stride)
            for at, out, stride, dilation in zip(
                offset, windows.outputs, windows.strides, windows.dilations, strict=True
            )
        )
        yield x[(slice(None), slice(None), *spatial)]


def convolution(attributes: Attributes) -> Callable[[Array, Array, Array | None], Array]:
    """Conv as ONNX defines it, for any number of spatial axes: columns of the image times the weights."""
    groups, windows_of = attributes.get("group", 1), _windows(attributes)

    def run(x: Array, weights: Array, bias: Array | None = None) -> Array:
        xp = library(x)
        windows = windows_of(x, list(weights.shape[2:]))
        outputs, taps = size_of(windows.outputs), size_of(windows.kernel)
        filters = xp.reshape(weights, (groups, weights.shape[0] // groups, weights.shape[1] * taps))
        images = max(1, _COLUMNS_BYTES_MAX // max(1, x.shape[1] * taps * outputs * 4))
        parts = []
        for first in range(0, max(1, x.shape[0]), images):
            part = pad(
                x[first : min(first + images, x.shape[0]), ...], [0, 0, *windows.begins], [0, 0, *windows.ends], 0
            )
            # [N, C, taps, outputs] -> [N, G, C / G * taps, outputs]
            shape = (part.shape[0], part.shape[1], outputs)
            columns = xp.stack([xp.reshape(tap, shape) for tap in _offsets(part, windows)], axis=2)
            columns = xp.reshape(columns, (shape[0], groups, shape[1] // groups * taps, outputs))
            parts.append(xp.reshape(xp.matmul(filters, columns), (shape[0], weights.shape[0], *windows.outputs)))
        y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        return y if bias is None else y + xp.reshape(bias, (-1, *[1] * len(windows.outputs)))

    return run


def _conv(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    return convolution(attributes)


def _max_pool(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.outputs > 1:
        raise Untranslated("MaxPool with indices")
    kernel, windows_of = attributes.get("kernel_shape"), _windows(attributes)

    def run(x: Array) -> Array:
        xp, windows = library(x), windows_of(x, kernel)
        lowest = -math.inf if xp.isdtype(x.dtype, "real floating") else int(xp.iinfo(x.dtype).min)
        best = None
        for tap in _offsets(pad(x, [0, 0, *windows.begins], [0, 0, *windows.ends], lowest), windows):
            best = tap if best is None else xp.maximum(best, tap)
        return best

    return run


def _average_pool(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    kernel, windows_of = attributes.get("kernel_shape"), _windows(attributes)
    count_pads = attributes.get("count_include_pad", 0)

    def run(x: Array) -> Array:
        xp, windows = library(x), windows_of(x, kernel)
        begins, ends = [0, 0, *windows.begins], [0, 0, *windows.ends]
        # Elements that only rounding up the output's size brings in never count.
        inside = xp.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
        counted = pad(inside, [0, 0, *windows.given_begins], [0, 0, *windows.given_ends], 1) if count_pads else inside
        left = [end - given for end, given in zip(windows.ends, windows.given_ends, strict=True)]
        counted = pad(counted, [0] * len(begins), [0, 0, *left], 0) if count_pads else pad(inside, begins, ends, 0)
        total, count = _sum_of(_offsets(pad(x, begins, ends, 0), windows)), _sum_of(_offsets(counted, windows))
        return total / count

    return run


def _sum_of(arrays: Iterator[Array]) -> Array:
    total = next(arrays)
    for array in arrays:
        total = total + array
    return total


def _lp_pool(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    kernel, windows_of, p = attributes.get("kernel_shape"), _windows(attributes), attributes.get("p", 2)

    def run(x: Array) -> Array:
        xp, windows = library(x), windows_of(x, kernel)
        padded = xp.abs(pad(x, [0, 0, *windows.begins], [0, 0, *windows.ends], 0)) ** p
        return _sum_of(_offsets(padded, windows)) ** (1 / p)

    return run


def _global(name: str) -> Maker:
    return plain(lambda x: getattr(library(x), name)(x, axis=tuple(range(2, x.ndim)), keepdims=True))


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) over its sum along `axis`."""
    fast = kernels.softmax(x) if axis % x.ndim == x.ndim - 1 else None
    if fast is not None:
        return fast
    xp = library(x)
    if not x.shape[axis]:
        return x
    powers = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True, dtype=x.dtype)


def _log_softmax(x: Array, axis: int) -> Array:
    xp = library(x)
    if not x.shape[axis]:
        return x
    below = x - xp.max(x, axis=axis, keepdims=True)
    return below - xp.log(xp.sum(xp.exp(below), axis=axis, keepdims=True, dtype=x.dtype))


def _hardmax(x: Array, axis: int) -> Array:
    xp = library(x)
    dims = [1] * x.ndim
    dims[axis] = x.shape[axis]
    best = xp.argmax(x, axis=axis, keepdims=True)
    return xp.astype(xp.reshape(xp.arange(x.shape[axis], dtype=best.dtype), tuple(dims)) == best, x.dtype)


def _along_axis(function: Callable[[Array, int], Array]) -> Maker:
    def make(attributes: Attributes, opset: int) -> Callable[..., Any]:
        axis = attributes.get("axis", -1 if opset >= 13 else 1)
        if opset >= 13:
            return lambda x: function(x, axis)

        # Before opset 13 everything from `axis` on is one axis.
        def run(x: Array) -> Array:
            xp, split = library(x), axis % x.ndim
            flat = xp.reshape(x, (size_of(x.shape[:split]), size_of(x.shape[split:])))
            return xp.reshape(function(flat, -1), x.shape)

        return run

    return make


def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float, axes: tuple[int, ...] = (-1,)) -> Array:
    """`x` minus its mean over its standard deviation along the last `axes`, scaled and shifted."""
    fast = kernels.layer_norm(x, scale, bias, epsilon) if axes == (-1,) else None
    if fast is not None:
        return fast
    xp = library(x)
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    y = centred / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + epsilon) * scale
    return y if bias is None else y + bias


def _last_axes(x: Array, axis: int) -> tuple[int, ...]:
    first = axis % x.ndim
    return tuple(range(first - x.ndim, 0))


def _layer_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.outputs > 1:
        raise Untranslated("LayerNormalization with Mean or InvStdDev outputs")
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias=None: layer_norm(x, scale, bias, epsilon, _last_axes(x, axis))


def _rms_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)

    def run(x: Array, scale: Array) -> Array:
        axes = _last_axes(x, axis)
        fast = kernels.rms_norm(x, scale, epsilon) if axes == (-1,) else None
        if fast is not None:
            return fast
        xp = library(x)
        return x / xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + epsilon) * scale

    return run


def _batch_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.get("training_mode", 0) or attributes.outputs > 1:
        raise Untranslated("BatchNormalization in training mode")
    epsilon = attributes.get("epsilon", 1e-5)

    def run(x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
        xp = library(x)
        shape = (-1, *[1] * (x.ndim - 2))
        factor = scale / xp.sqrt(var + epsilon)
        return xp.astype(x * xp.reshape(factor, shape) + xp.reshape(bias - mean * factor, shape), x.dtype)

    return run


def _instance_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    epsilon = attributes.get("epsilon", 1e-5)

    def run(x: Array, scale: Array, bias: Array) -> Array:
        xp, shape = library(x), (-1, *[1] * (x.ndim - 2))
        axes = tuple(range(2, x.ndim))
        return layer_norm(x, xp.reshape(scale, shape), xp.reshape(bias, shape), epsilon, axes)

    return run


def _group_norm(attributes: Attributes, opset: int) -> Callable[..., Any]:
    groups, epsilon = attributes.get("num_groups"), attributes.get("epsilon", 1e-5)
    if opset < 21:
        raise Untranslated("GroupNormalization before opset 21")

    def run(x: Array, scale: Array, bias: Array) -> Array:
        xp, shape = library(x), (-1, *[1] * (x.ndim - 2))
        parts = xp.reshape(x, (x.shape[0], groups, -1))
        centred = parts - xp.mean(parts, axis=-1, keepdims=True)
        parts = centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
        return xp.reshape(parts, x.shape) * xp.reshape(scale, shape) + xp.reshape(bias, shape)

    return run


def _lp_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, p = attributes.get("axis", -1), attributes.get("p", 2)

    def run(x: Array) -> Array:
        xp = library(x)
        size = xp.sum(xp.abs(x) ** p, axis=axis, keepdims=True) ** (1 / p)
        return xp.where(size == 0, xp.zeros_like(x), x / xp.where(size == 0, xp.ones_like(size), size))

    return run


OPS: dict[str, Maker] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max"),
    "Softmax": _along_axis(softmax),
    "LogSoftmax": _along_axis(_log_softmax),
    "Hardmax": _along_axis(_hardmax),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
}
