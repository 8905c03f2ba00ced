"""Ops that move, select and make elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from headrace.backends.torch.arithmetic import dtype_of
from headrace.backends.torch.ops import Maker

from headrace.graph.script import Attributes, Untranslated

Tensor = torch.Tensor


def _constant(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    for name, dtype in (("value", None), ("value_float", np.float32), ("value_floats", np.float32),
                        ("value_int", np.int64), ("value_ints", np.int64)):  # fmt: skip
        value = attributes.get(name)
        if value is not None:
            tensor = torch.from_numpy(np.array(value, dtype=dtype))
            return lambda: tensor
    raise Untranslated("a Constant of strings or sparse values")


def _reshape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    keep_zero = attributes.get("allowzero", 0)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        dims = shape.tolist()
        if not keep_zero:
            dims = [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(dims)]
        return x.reshape(dims)

    return run


def _dropout(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    if attributes.inputs > 2 or attributes.outputs > 1:
        raise Untranslated("Dropout with a mask or a training mode")
    return lambda x, *_: x


def _squeeze(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = attributes.get("axes") if axes is None else axes.tolist()
        return x.squeeze() if dims is None else x.squeeze(tuple(dims))

    return run


def _unsqueeze(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = attributes.get("axes") if axes is None else axes.tolist()
        rank = x.dim() + len(dims)
        for axis in sorted(dim % rank for dim in dims):
            x = x.unsqueeze(axis)
        return x

    return run


def _flatten(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 1)

    def run(x: Tensor) -> Tensor:
        split = axis % x.dim() if axis < 0 else axis
        return x.reshape(int(np.prod(x.shape[:split])), int(np.prod(x.shape[split:])))

    return run


def _shape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    start, end = attributes.get("start", 0), attributes.get("end")
    # On the host, where it is read.
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _transpose(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    perm = attributes.get("perm")
    return lambda x: x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


def _gather(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.dim()
        flat = indices.reshape(-1).long()
        flat = torch.where(flat < 0, flat + x.shape[at], flat)
        picked = torch.index_select(x, at, flat)
        return picked.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))

    return run


def _gather_elements(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())

    return run


def _slice(attributes: Attributes, opset: int) -> Callable[..., Any]:
    if opset < 10:
        raise Untranslated("Slice before opset 10")

    def run(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        first = starts.tolist()
        along = list(range(len(first))) if axes is None else axes.tolist()
        strides = [1] * len(first) if steps is None else steps.tolist()
        for axis, start, end, step in zip(along, first, ends.tolist(), strides, strict=True):
            picked = range(x.shape[axis])[slice(start, None if step < 0 and end < -x.shape[axis] else end, step)]
            if not picked:
                x = x.narrow(axis, 0, 0)
                continue
            # Views only: torch takes no negative steps, and an index would have to be copied to the device.
            low, high = min(picked[0], picked[-1]), max(picked[0], picked[-1])
            x = x[(slice(None),) * (axis % x.dim()) + (slice(low, high + 1, abs(step)),)]
            x = x.flip(axis) if step < 0 else x
        return x

    return run


def _split(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, outputs = attributes.get("axis", 0), attributes.outputs

    def run(x: Tensor, sizes: Tensor | None = None) -> Any:
        parts = attributes.get("split") if sizes is None else sizes.tolist()
        if parts is None:
            chunk = -(-x.shape[axis] // outputs)
            parts = [min(chunk, x.shape[axis] - chunk * index) for index in range(outputs)]
        found = torch.split(x, parts, axis)
        return found if outputs > 1 else found[0]

    return run


def _concat(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)
    return lambda *tensors: torch.cat(tensors, axis)


def _constant_of_shape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    value = attributes.get("value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(np.array(value).reshape(1))
    return lambda shape: fill.to(shape.device).expand(shape.tolist()).clone()


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _arg(function: Callable[..., Tensor]) -> Maker:
    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        if attributes.get("select_last_index", 0):
            raise Untranslated("select_last_index")
        return lambda x: function(x, attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))

    return make


def _topk(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))

    def run(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # Stable, so that equal values keep the lower index first, as ONNX asks.
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, int(k.item())), indices.narrow(axis, 0, int(k.item()))

    return run


def _trilu(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    function = torch.triu if attributes.get("upper", 1) else torch.tril
    return lambda x, k=None: function(x, 0 if k is None else int(k.item()))


def _pad(attributes: Attributes, opset: int) -> Callable[..., Any]:
    if attributes.get("mode", "constant") != "constant" or opset < 11:
        raise Untranslated("Pad other than constant, or before opset 11")

    def run(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts, fill = pads.tolist(), 0 if value is None else value.item()
        along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes.tolist()]
        both = [0] * (2 * x.dim())
        for index, axis in enumerate(along):
            position = 2 * (x.dim() - 1 - axis)
            both[position], both[position + 1] = amounts[index], amounts[index + len(along)]
        return torch.nn.functional.pad(x, both, value=fill)

    return run


OPS: dict[str, Maker] = {
    "Constant": _constant,
    "Identity": lambda _a, _o: lambda x: x,
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Shape": _shape,
    "Size": lambda _a, _o: lambda x: torch.tensor(x.numel(), dtype=torch.int64),
    "Transpose": _transpose,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda _a, _o: _expand,
    "Tile": lambda _a, _o: lambda x, repeats: x.repeat(repeats.tolist()),
    "Range": lambda _a, _o: _range,
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "TopK": _topk,
    "Trilu": _trilu,
    "Pad": _pad,
    "CastLike": lambda _a, _o: lambda x, like: x.to(like.dtype),
    "CumSum": lambda a, _o: _cumsum(a),
    "EyeLike": lambda a, _o: _eye_like(a),
}


def _cumsum(attributes: Attributes) -> Callable[..., Any]:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise Untranslated("CumSum exclusive or reverse")
    return lambda x, axis: torch.cumsum(x, int(axis.item())).to(x.dtype)


def _eye_like(attributes: Attributes) -> Callable[..., Any]:
    code, k = attributes.get("dtype"), attributes.get("k", 0)

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(max(x.shape), dtype=x.dtype if code is None else dtype_of(code), device=x.device)
        return torch.diag(ones, k)[: x.shape[0], : x.shape[1]] if k == 0 else torch.diagonal_scatter(
            torch.zeros(tuple(x.shape), dtype=ones.dtype, device=x.device),
            ones[: torch.zeros(tuple(x.shape)).diagonal(k).numel()], k,
        )  # fmt: skip

    return run
