"""Ops that move, select and make elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from headrace.backends.cupy.arithmetic import plain
from headrace.backends.cupy.arrays import (
    Array,
    dtype_name,
    dtype_of,
    ints,
    library,
    number,
    same_place,
    size_of,
)  # fmt: skip
from headrace.backends.cupy.ops import Maker

from headrace.graph.script import Attributes, Untranslated


def _object(x: Array) -> bool:
    return bool(x.dtype == object)


def _reshape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    keep_zero = attributes.get("allowzero", 0)

    def run(x: Array, shape: Array) -> Array:
        dims = ints(shape)
        if not keep_zero:
            dims = [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(dims)]
        if -1 in dims and size_of(x.shape) == 0:
            # The library cannot divide by the zero that is among the others.
            others = size_of(dim for dim in dims if dim != -1)
            dims = [(0 if others else 1) if dim == -1 and others == 0 else dim for dim in dims]
        return x.reshape(dims) if _object(x) else library(x).reshape(x, tuple(dims))

    return run


def _squeeze(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    fixed = attributes.get("axes")

    def run(x: Array, axes: Array | None = None) -> Array:
        dims = fixed if axes is None else ints(axes)
        dims = [axis for axis, dim in enumerate(x.shape) if dim == 1] if dims is None else [d % x.ndim for d in dims]
        return x.reshape([dim for axis, dim in enumerate(x.shape) if axis not in dims]) if _object(x) else (
            library(x).squeeze(x, axis=tuple(dims))
        )  # fmt: skip

    return run


def _unsqueeze(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    fixed = attributes.get("axes")

    def run(x: Array, axes: Array | None = None) -> Array:
        dims = fixed if axes is None else ints(axes)
        rank = x.ndim + len(dims)
        added = {dim % rank for dim in dims}
        kept = iter(x.shape)
        shape = tuple(1 if axis in added else next(kept) for axis in range(rank))
        return x.reshape(shape) if _object(x) else library(x).reshape(x, shape)

    return run


def _flatten(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 1)

    def run(x: Array) -> Array:
        split = axis % x.ndim if axis < 0 else axis
        shape = (size_of(x.shape[:split]), size_of(x.shape[split:]))
        return x.reshape(shape) if _object(x) else library(x).reshape(x, shape)

    return run


def _shape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    start, end = attributes.get("start", 0), attributes.get("end")
    # On the host, where it is read.
    return lambda x: np.array(x.shape[start:end], dtype=np.int64)


def _transpose(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    perm = attributes.get("perm")

    def run(x: Array) -> Array:
        order = tuple(perm if perm is not None else range(x.ndim)[::-1])
        return x.transpose(order) if _object(x) else library(x).permute_dims(x, order)

    return run


def gather(x: Array, indices: Array, axis: int) -> Array:
    """Elements of `x` along `axis`; negative indices count from the end."""
    at = axis % x.ndim
    if _object(x):
        return np.take(x, indices, at)
    xp = library(x)
    flat = xp.reshape(indices, (-1,))
    flat = xp.where(flat < 0, flat + x.shape[at], flat)
    return xp.reshape(xp.take(x, flat, axis=at), (*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))


def _gather(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)
    return lambda x, indices: gather(x, indices, axis)


def _gather_elements(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)

    def run(x: Array, indices: Array) -> Array:
        xp = library(x)
        along = xp.astype(xp.where(indices < 0, indices + x.shape[axis], indices), xp.int64)
        # Indices may reach less far than the data in the other axes.
        whole = tuple(slice(None) if i == axis % x.ndim else slice(0, dim) for i, dim in enumerate(indices.shape))
        return xp.take_along_axis(x[whole], along, axis=axis % x.ndim)

    return run


def _gather_nd(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    batch = attributes.get("batch_dims", 0)

    def run(x: Array, indices: Array) -> Array:
        xp, depth = library(x), indices.shape[-1]
        # One axis for the batch, one for all that the indices choose from, one for what they choose.
        chosen = x.shape[batch : batch + depth]
        rows, slices = size_of(x.shape[:batch]), x.shape[batch + depth :]
        flat = xp.reshape(x, (rows * size_of(chosen), size_of(slices)))
        at = xp.zeros(indices.shape[:-1], dtype=xp.int64)
        for axis, dim in enumerate(chosen):
            index = xp.astype(indices[..., axis], xp.int64)
            at = at * dim + xp.where(index < 0, index + dim, index)
        first = xp.reshape(xp.arange(rows, dtype=xp.int64) * size_of(chosen), (rows, 1))
        at = xp.reshape(xp.reshape(at, (rows, -1)) + first, (-1,))
        return xp.reshape(xp.take(flat, at, axis=0), (*indices.shape[:-1], *slices))

    return run


def slice_of(dim: int, start: int, end: int, step: int) -> slice:
    """ONNX's start, end and step on an axis of `dim` elements as a Python slice."""
    if step > 0:
        return slice(*slice(start, end, step).indices(dim))
    picked = range(dim)[slice(start, None if end < -dim else end, step)]
    stop = picked.stop
    return slice(picked.start, None if stop < 0 else stop, step) if len(picked) else slice(0, 0)


def _slice(attributes: Attributes, opset: int) -> Callable[..., Any]:
    if opset < 10:
        given = (attributes.get("starts"), attributes.get("ends"), attributes.get("axes"))
        return lambda x: _sliced(x, given[0], given[1], given[2] or range(len(given[0])), [1] * len(given[0]))

    def run(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
        first = ints(starts)
        along = range(len(first)) if axes is None else ints(axes)
        return _sliced(x, first, ints(ends), along, [1] * len(first) if steps is None else ints(steps))

    return run


def _sliced(x: Array, starts: Any, ends: Any, axes: Any, steps: Any) -> Array:
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice_of(x.shape[axis], start, end, step)
    return x[tuple(index)]


def _split(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis, outputs, fixed = attributes.get("axis", 0), attributes.outputs, attributes.get("split")

    def run(x: Array, sizes: Array | None = None) -> Any:
        parts = fixed if sizes is None else ints(sizes)
        at, start, found = axis % x.ndim, 0, []
        if parts is None:
            chunk = -(-x.shape[at] // outputs)
            parts = [max(0, min(chunk, x.shape[at] - chunk * index)) for index in range(outputs)]
        for part in parts:
            found.append(x[(slice(None),) * at + (slice(start, start + part),)])
            start += part
        return tuple(found) if outputs > 1 else found[0]

    return run


def _concat(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", 0)

    def run(*arrays: Array) -> Array:
        return np.concatenate(arrays, axis) if _object(arrays[0]) else library(arrays[0]).concat(arrays, axis=axis)

    return run


def _constant(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    raise Untranslated("a Constant that was not folded")


def _constant_of_shape(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    value = attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.array(value).reshape(1)
    return lambda shape: library(shape).broadcast_to(same_place(fill, shape), tuple(ints(shape)))


def _expand(x: Array, shape: Array) -> Array:
    dims = np.broadcast_shapes(tuple(x.shape), tuple(ints(shape)))
    return np.broadcast_to(x, dims) if _object(x) else library(x).broadcast_to(x, dims)


def _range(start: Array, limit: Array, delta: Array) -> Array:
    xp, first, step = library(start), number(start), number(delta)
    steps = max(0, int(np.ceil((number(limit) - first) / step)))
    return xp.astype(first + step * xp.arange(steps, dtype=start.dtype), start.dtype)


def _arg(name: str) -> Maker:
    def make(attributes: Attributes, _opset: int) -> Callable[..., Any]:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        last = attributes.get("select_last_index", 0)

        def run(x: Array) -> Array:
            xp = library(x)
            turned = xp.flip(x, axis=axis) if last else x
            found = xp.astype(getattr(xp, name)(turned, axis=axis, keepdims=keep), xp.int64)
            return x.shape[axis] - 1 - found if last else found

        return run

    return make


def _topk(attributes: Attributes, opset: int) -> Callable[..., Any]:
    axis, largest, fixed = attributes.get("axis", -1), bool(attributes.get("largest", 1)), attributes.get("k")

    def run(x: Array, k: Array | None = None) -> tuple[Array, Array]:
        xp, at = library(x), axis % x.ndim
        # Stable, so that equal values keep the lower index first, as ONNX asks.
        order = xp.argsort(x, axis=at, descending=largest, stable=True)
        order = order[(slice(None),) * at + (slice(0, fixed if k is None else number(k)),)]
        return xp.take_along_axis(x, order, axis=at), xp.astype(order, xp.int64)

    return run


def _trilu(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    name = "triu" if attributes.get("upper", 1) else "tril"
    return lambda x, k=None: getattr(library(x), name)(x, k=0 if k is None else int(number(k)))


def pad(x: Array, begins: list[int], ends: list[int], value: Any) -> Array:
    """`x` with `value` around it: as many rows before and after each axis as the lists say, fewer where negative."""
    xp = library(x)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin < 0 or end < 0:
            stop = x.shape[axis] + min(end, 0)
            x = x[(slice(None),) * axis + (slice(max(-begin, 0), max(stop, 0)),)]
        sides = [max(begin, 0), max(end, 0)]
        if any(sides):
            blocks = [xp.full((*x.shape[:axis], n, *x.shape[axis + 1 :]), value, dtype=x.dtype) for n in sides]
            x = xp.concat((blocks[0], x, blocks[1]), axis=axis)
    return x


# Where the rows of a padded axis come from, by mode: the row for a position, which may be outside, and for a length.
_PAD_ROWS: dict[str, Callable[[Any, int], Any]] = {
    "edge": lambda at, dim: np.clip(at, 0, dim - 1),
    "wrap": lambda at, dim: at % dim,
    "reflect": lambda at, dim: dim - 1 - np.abs(dim - 1 - at % max(2 * dim - 2, 1)),
}


def _pad(attributes: Attributes, opset: int) -> Callable[..., Any]:
    mode, fixed, fill = attributes.get("mode", "constant"), attributes.get("pads"), attributes.get("value", 0.0)
    if mode != "constant" and mode not in _PAD_ROWS:
        raise Untranslated(f"Pad with mode {mode!r}")

    def run(x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None) -> Array:
        amounts = fixed if pads is None else ints(pads)
        along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
        begins, ends = [0] * x.ndim, [0] * x.ndim
        for index, axis in enumerate(along):
            begins[axis], ends[axis] = amounts[index], amounts[index + len(along)]
        if mode == "constant":
            around = fill if value is None else number(value)
            return pad(x, begins, ends, around if library(x).isdtype(x.dtype, "real floating") else int(around))
        for axis, dim in enumerate(x.shape):
            if begins[axis] or ends[axis]:
                rows = _PAD_ROWS[mode](np.arange(-begins[axis], dim + ends[axis]), dim)
                x = library(x).take(x, same_place(rows, x), axis=axis)
        return x

    return run


def _one_hot(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis", -1)

    def run(indices: Array, depth: Array, values: Array) -> Array:
        xp, count = library(indices), int(number(depth))
        at = axis % (indices.ndim + 1)
        wanted = xp.astype(xp.expand_dims(indices, axis=at), xp.int64)
        wanted = xp.where(wanted < 0, wanted + count, wanted)
        shape = [1] * (indices.ndim + 1)
        shape[at] = count
        return xp.where(wanted == xp.reshape(xp.arange(count, dtype=xp.int64), tuple(shape)), values[1], values[0])

    return run


def _eye_like(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    code, k = attributes.get("dtype"), attributes.get("k", 0)
    name = None if code is None else dtype_name(code)

    def run(x: Array) -> Array:
        xp = library(x)
        return xp.eye(x.shape[0], x.shape[1], k=k, dtype=x.dtype if name is None else dtype_of(xp, name))

    return run


def _space(attributes: Attributes, *, to_depth: bool) -> Callable[..., Any]:
    block, columns_first = attributes.get("blocksize"), attributes.get("mode", "DCR") == "CRD"

    def run(x: Array) -> Array:
        xp = library(x)
        batch, channels, height, width = x.shape
        if to_depth:
            x = xp.reshape(x, (batch, channels, height // block, block, width // block, block))
            x = xp.permute_dims(x, (0, 1, 3, 5, 2, 4) if columns_first else (0, 3, 5, 1, 2, 4))
            return xp.reshape(x, (batch, channels * block * block, height // block, width // block))
        inner = channels // (block * block)
        if columns_first:
            x = xp.permute_dims(xp.reshape(x, (batch, inner, block, block, height, width)), (0, 1, 4, 2, 5, 3))
        else:
            x = xp.permute_dims(xp.reshape(x, (batch, block, block, inner, height, width)), (0, 3, 4, 1, 5, 2))
        return xp.reshape(x, (batch, inner, height * block, width * block))

    return run


def check_dropout(attributes: Attributes) -> None:
    """Raises Untranslated unless a Dropout surely drops nothing."""
    training = attributes.constant(2)
    if attributes.has_input(2) and (training is None or training.any()):
        raise Untranslated("Dropout in training mode")


def _dropout(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    check_dropout(attributes)
    if attributes.outputs == 1:
        return lambda x, *_: x
    return lambda x, *_: (x, library(x).ones(x.shape, dtype=library(x).bool))


def _compress(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    axis = attributes.get("axis")

    def run(x: Array, condition: Array) -> Array:
        xp = library(x)
        kept = xp.nonzero(condition)[0]
        return xp.take(xp.reshape(x, (-1,)), kept, axis=0) if axis is None else xp.take(x, kept, axis=axis % x.ndim)

    return run


OPS: dict[str, Maker] = {
    "Constant": _constant,
    "Identity": plain(lambda x: x),
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Shape": _shape,
    "Size": plain(lambda x: np.array(size_of(x.shape), dtype=np.int64)),
    "Transpose": _transpose,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": plain(_expand),
    "Tile": plain(lambda x, repeats: library(x).tile(x, tuple(ints(repeats)))),
    "Range": plain(_range),
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
    "TopK": _topk,
    "Trilu": _trilu,
    "Pad": _pad,
    "OneHot": _one_hot,
    "CastLike": plain(lambda x, like: library(x).astype(x, like.dtype)),
    "EyeLike": _eye_like,
    "NonZero": plain(lambda x: library(x).astype(library(x).stack(library(x).nonzero(x)), library(x).int64)),
    "Compress": _compress,
    "DepthToSpace": lambda attributes, _opset: _space(attributes, to_depth=False),
    "SpaceToDepth": lambda attributes, _opset: _space(attributes, to_depth=True),
}
