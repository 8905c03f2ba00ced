"""Layers of neural networks: convolutions, pools, norms, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from headrace.backends.torch.ops import Maker

from headrace.graph.script import Attributes, Untranslated
from headrace.graph.windows import Windows

Tensor = torch.Tensor

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pad_spatial(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    """Pads the last axes by ONNX's (begins, ends) list."""
    axes = len(pads) // 2
    both = [amount for axis in reversed(range(axes)) for amount in (pads[axis], pads[axis + axes])]
    return F.pad(x, both, value=value) if any(both) else x


def convolution(attributes: Attributes) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Conv as ONNX defines it, for 1 to 3 spatial axes."""
    groups, strides, dilations = attributes.get("group", 1), attributes.get("strides"), attributes.get("dilations")
    pads = attributes.get("pads") or []
    axes = len(pads) // 2
    fixed = attributes.get("auto_pad", "NOTSET") == "NOTSET" and pads[:axes] == pads[axes:]

    def run(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        if fixed:  # as torch itself pads, without a copy
            convolve = _CONVOLUTIONS[x.dim() - 2]
            return convolve(x, weights, bias, strides or 1, pads[:axes] or 0, dilations or 1, groups)
        windows = Windows.of(attributes, list(x.shape[2:]), list(weights.shape[2:]))
        padded = pad_spatial(x, [*windows.begins, *windows.ends])
        return _CONVOLUTIONS[x.dim() - 2](padded, weights, bias, windows.strides, 0, windows.dilations, groups)

    return run


def _conv(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    return convolution(attributes)


def _max_pool(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.outputs > 1 or attributes.get("ceil_mode", 0):
        raise Untranslated("MaxPool with indices or ceil_mode")
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Untranslated("MaxPool with auto_pad")

    def run(x: Tensor) -> Tensor:
        if not x.is_floating_point():  # torch pools floats alone, and those of 32 bits hold every byte
            return run(x.float()).to(x.dtype)
        axes = x.dim() - 2
        padded = pad_spatial(x, attributes.get("pads") or [0] * 2 * axes, float("-inf"))
        strides = attributes.get("strides") or [1] * axes
        return _MAX_POOLS[axes](
            padded, attributes.get("kernel_shape"), strides, 0, attributes.get("dilations") or [1] * axes
        )

    return run


def _average_pool(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.get("ceil_mode", 0) or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Untranslated("AveragePool with ceil_mode or auto_pad")
    if any(dilation != 1 for dilation in attributes.get("dilations") or []):
        raise Untranslated("AveragePool with dilations")
    count_pads = attributes.get("count_include_pad", 0)

    def run(x: Tensor) -> Tensor:
        axes = x.dim() - 2
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[axes]
        pads = attributes.get("pads") or [0] * 2 * axes
        kernel, strides = attributes.get("kernel_shape"), attributes.get("strides") or [1] * axes
        sums = pool(pad_spatial(x, pads), kernel, strides)
        return sums if count_pads else sums / pool(pad_spatial(torch.ones_like(x), pads), kernel, strides)

    return run


def _softmax(function: Callable[..., Tensor]) -> Maker:
    def make(attributes: Attributes, opset: int) -> Callable[..., Any]:
        axis = attributes.get("axis", -1 if opset >= 13 else 1)
        if opset >= 13:
            return lambda x: function(x, axis)
        # Before opset 13 everything from `axis` on is one axis.
        return lambda x: function(x.flatten(axis % x.dim()), -1).reshape(x.shape)

    return make


def _layer_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.outputs > 1:
        raise Untranslated("LayerNormalization with Mean or InvStdDev outputs")
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        dims = x.shape[axis % x.dim() :]
        return F.layer_norm(x, dims, scale.expand(dims), None if bias is None else bias.expand(dims), epsilon)

    return run


def _rms_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    return lambda x, scale: F.rms_norm(x, x.shape[axis % x.dim() :], None, epsilon) * scale


def _batch_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.get("training_mode", 0):
        raise Untranslated("BatchNormalization in training mode")
    epsilon = attributes.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


OPS: dict[str, Maker] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _a, _o: lambda x: x.mean(tuple(range(2, x.dim())), True),
    "GlobalMaxPool": lambda _a, _o: lambda x: x.amax(tuple(range(2, x.dim())), True),
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": lambda a, _o: (
        lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))
    ),
}
