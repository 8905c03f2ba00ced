"""Elementwise ops, comparisons, reductions and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from headrace.backends.torch.ops import Maker

from headrace.graph.script import Attributes, Untranslated

Tensor = torch.Tensor

# ONNX TensorProto.DataType -> torch
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _plain(function: Callable[..., Any]) -> Maker:
    """A maker for ops without attributes."""
    return lambda _attributes, _opset: function


def dtype_of(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type code."""
    if code not in DTYPES:
        raise Untranslated(f"torch has no dtype for ONNX element type {code}")
    return DTYPES[code]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    def run(first: Tensor, *rest: Tensor) -> Tensor:
        for tensor in rest:
            first = function(first, tensor)
        return first

    return _plain(run)


def _mean(*tensors: Tensor) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


def _mod(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    return torch.fmod if attributes.get("fmod", 0) else torch.remainder


def _cast(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    dtype = dtype_of(attributes.get("to"))
    return lambda x: x.to(dtype)


def _clip(attributes: Attributes, opset: int) -> Callable[..., Any]:
    if opset < 11:
        return lambda x: torch.clamp(x, attributes.get("min"), attributes.get("max"))

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        if low is not None:
            x = torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    return run


def _gelu(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    approximate = attributes.get("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _is_inf(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    negative, positive = attributes.get("detect_negative", 1), attributes.get("detect_positive", 1)

    def run(x: Tensor) -> Tensor:
        found = torch.zeros_like(x, dtype=torch.bool)
        if negative:
            found |= torch.isneginf(x)
        if positive:
            found |= torch.isposinf(x)
        return found

    return run


def _gemm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = alpha * ((a.t() if trans_a else a) @ (b.t() if trans_b else b))
        return product if c is None else product + beta * c

    return run


def _axes(attributes: Attributes, given: Tensor | None) -> list[int] | None:
    axes = attributes.get("axes") if given is None else given.tolist()
    return axes or None


def _reduce(function: Callable[[Tensor, Any, bool], Tensor]) -> Maker:
    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        keep, noop = bool(attributes.get("keepdims", 1)), attributes.get("noop_with_empty_axes", 0)

        def run(x: Tensor, given: Tensor | None = None) -> Tensor:
            axes = _axes(attributes, given)
            if axes is None and noop:
                return x
            return function(x, tuple(range(x.dim())) if axes is None else tuple(axes), keep)

        return run

    return make


def _extreme(function: Callable[..., Tensor], *, largest: bool) -> Callable[[Tensor, Any, bool], Tensor]:
    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        along = {axis % x.dim() for axis in axes} if x.dim() else set()
        if all(x.shape[axis] for axis in along):
            return function(x, axes, keep)
        # Of nothing: what any element would replace.
        if x.dtype == torch.bool:
            fill: float | bool = not largest
        elif x.is_floating_point():
            fill = float("-inf") if largest else float("inf")
        else:
            fill = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
        shape = [1 if axis in along else dim for axis, dim in enumerate(x.shape) if keep or axis not in along]
        return torch.full(shape, fill, dtype=x.dtype, device=x.device)

    return run


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype) if x.dim() else x


OPS: dict[str, Maker] = {
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divide),
    "Mod": _mod,
    "Pow": _plain(lambda a, b: torch.pow(a, b).to(a.dtype)),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mean": _plain(_mean),
    "Equal": _plain(torch.eq),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or),
    "Xor": _plain(torch.logical_xor),
    "Not": _plain(torch.logical_not),
    "Where": _plain(torch.where),
    "IsNaN": _plain(torch.isnan),
    "IsInf": _is_inf,
    "Cast": _cast,
    "Clip": _clip,
    "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg),
    "Sign": _plain(torch.sign),
    "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Erf": _plain(torch.erf),
    "Floor": _plain(torch.floor),
    "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round),
    "Sin": _plain(torch.sin),
    "Cos": _plain(torch.cos),
    "Tanh": _plain(torch.tanh),
    "Sigmoid": _plain(torch.sigmoid),
    "Relu": _plain(torch.relu),
    "LeakyRelu": lambda a, _: lambda x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda a, _: lambda x: F.elu(x, a.get("alpha", 1.0)),
    "HardSigmoid": lambda a, _: lambda x: torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1),
    "HardSwish": _plain(F.hardswish),
    "Softplus": _plain(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": _plain(F.softsign),
    "Mish": _plain(F.mish),
    "PRelu": _plain(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Gelu": _gelu,
    "MatMul": _plain(torch.matmul),
    "Gemm": _gemm,
    "ReduceSum": _reduce(_sum),
    "ReduceMean": _reduce(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "ReduceMax": _reduce(_extreme(torch.amax, largest=True)),
    "ReduceMin": _reduce(_extreme(torch.amin, largest=False)),
    "ReduceProd": _reduce(_prod),
    "ReduceL1": _reduce(lambda x, axes, keep: torch.sum(x.abs(), axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep))),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: torch.log(torch.sum(x, axes, keep))),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
}
