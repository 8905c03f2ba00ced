"""Launches the kernels of kernels.cu on cupy arrays.

Every function returns None where the kernel does not apply, which is so for every array that is not cupy's: the caller
then goes on in the array API.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Array = Any

SOURCE = Path(__file__).with_name("kernels.cu")

# The numbers of kernels.cu.
ACTIVATIONS = {"none": 0, "relu": 1, "gelu_erf": 2, "gelu_tanh": 3, "sigmoid": 4, "tanh": 5, "silu": 6}
_DEPTH_MAX, _TERMS_MAX, _WARP = 256, 4, 32
_BLOCK, _ATTENTION_WARPS, _GRID_MAX = 256, 4, 65535


def _on_device(*arrays: Array | None) -> bool:
    """Whether all that are given are float32 arrays of cupy's."""
    return all(
        array is None or (type(array).__module__.partition(".")[0] == "cupy" and array.dtype == np.float32)
        for array in arrays
    )


@lru_cache(maxsize=1)
def _module() -> Any:
    import cupy

    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=("-std=c++17",))


def _launch(name: str, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
    _module().get_function(name)(grid, (block,), tuple(np.uintp(0) if item is None else item for item in arguments))


def _flat_grid(size: int) -> tuple[int]:
    return (min(-(-size // _BLOCK), _GRID_MAX),)


def _contiguous(array: Array | None) -> Array | None:
    import cupy

    return None if array is None else cupy.ascontiguousarray(array)


def epilogue(activation: str, y: Array, bias: Array | None, residual: Array | None) -> Array | None:
    """``activation(y + bias) + residual``, written over `y`, which must be the caller's own.

    Args:
        activation: One of `ACTIVATIONS`.
        y: [..., width].
        bias: [width].
        residual: Of `y`'s shape.
    """
    if not _on_device(y, bias, residual) or activation not in ACTIVATIONS or not y.flags.c_contiguous or not y.size:
        return None
    if (bias is not None and bias.shape != y.shape[-1:]) or (residual is not None and residual.shape != y.shape):
        return None
    bias, residual = _contiguous(bias), _contiguous(residual)
    width, code = np.int32(y.shape[-1]), np.int32(ACTIVATIONS[activation])
    _launch("epilogue", _flat_grid(y.size), _BLOCK, y, bias, residual, np.int64(y.size), width, code)
    return y


def unary(activation: str, x: Array) -> Array | None:
    """``activation(x)``."""
    if not _on_device(x) or not x.size:
        return None
    x = _contiguous(x)
    y = _empty(x.shape)
    _launch("unary", _flat_grid(x.size), _BLOCK, x, y, np.int64(x.size), np.int32(ACTIVATIONS[activation]))
    return y


def _empty(shape: tuple[int, ...]) -> Array:
    import cupy

    return cupy.empty(shape, dtype=cupy.float32)


def _rows(x: Array) -> int:
    return int(x.size // x.shape[-1])


def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array | None:
    """LayerNormalization over the last axis."""
    return _norm(x, scale, bias, epsilon, centred=True)


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array | None:
    """RMSNormalization over the last axis."""
    return _norm(x, scale, None, epsilon, centred=False)


def _norm(x: Array, scale: Array, bias: Array | None, epsilon: float, *, centred: bool) -> Array | None:
    if not _on_device(x, scale, bias) or not x.size or scale.shape != x.shape[-1:]:
        return None
    if bias is not None and bias.shape != scale.shape:
        return None
    x, scale, bias = _contiguous(x), _contiguous(scale), _contiguous(bias)
    y = _empty(x.shape)
    width, eps = np.int32(x.shape[-1]), np.float32(epsilon)
    _launch("layer_norm", (_rows(x),), _BLOCK, x, scale, bias, y, width, eps, np.int32(centred))
    return y


def softmax(x: Array) -> Array | None:
    """Softmax over the last axis."""
    if not _on_device(x) or not x.size:
        return None
    x = _contiguous(x)
    y = _empty(x.shape)
    _launch("softmax", (_rows(x),), _BLOCK, x, y, np.int32(x.shape[-1]))
    return y


def embedding_norm(
    scale: Array, bias: Array | None, terms: list[tuple[Array, Array | None]], epsilon: float
) -> Array | None:
    """LayerNormalization of a sum of terms: rows of tables by their ids, or, where those are None, whole arrays."""
    if not _on_device(scale, bias, *(rows for rows, _ in terms)) or len(terms) > _TERMS_MAX:
        return None
    width = scale.shape[0]
    shapes = [rows.shape[:-1] if ids is None else ids.shape for rows, ids in terms]
    leading = np.broadcast_shapes(*shapes)
    # The kernel repeats a term of fewer rows from the start: what broadcasting does to leading axes alone.
    if any(leading[len(leading) - len(shape) :] != shape for shape in shapes if shape) or 0 in leading:
        return None
    if any(rows.shape[-1] != width or (ids is not None and rows.ndim != 2) for rows, ids in terms):
        return None
    y = _empty((*leading, width))
    packed: list[Any] = []
    held = []  # arrays made here live until the launch
    for rows, ids in terms:
        rows = _contiguous(rows)
        if ids is not None:
            import cupy

            ids = cupy.ascontiguousarray(cupy.broadcast_to(ids, leading), dtype=np.int64)
        held.append((rows, ids))
        packed += [rows, ids, np.int64(rows.size // width)]
    packed += [None, None, np.int64(1)] * (_TERMS_MAX - len(terms))
    _launch("embedding_norm", (_rows(y),), _BLOCK, *packed, _contiguous(scale), _contiguous(bias), y, np.int32(width),
            np.float32(epsilon))  # fmt: skip
    return y


def attention(q: Array, k: Array, v: Array, mask: Array | None, scale: float, guard: bool) -> Array | None:
    """See `headrace.backends.cupy.fused.attention`."""
    if not _on_device(q, k, v) or not q.size or not v.size or max(q.shape[-1], v.shape[-1]) > _DEPTH_MAX:
        return None
    added = kept = None
    strides = [0, 0, 0, 0]
    if mask is not None:
        import cupy

        wide = cupy.broadcast_to(mask, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
        strides = [stride // wide.itemsize for stride in wide.strides]
        if mask.dtype == np.bool_:
            kept = wide
        elif mask.dtype == np.float32:
            added = wide
        else:
            return None
    if q.shape[0] * q.shape[1] > _GRID_MAX:  # heads of all samples, of which each has a row of the grid
        return None
    q, k, v = (array if array.strides[-1] == array.itemsize else _contiguous(array) for array in (q, k, v))
    out = _empty((*q.shape[:3], v.shape[-1]))
    sizes = (q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3])
    steps = [stride // array.itemsize for array in (q, k, v) for stride in array.strides[:3]]
    grid = (-(-q.shape[2] // _ATTENTION_WARPS), q.shape[0] * q.shape[1])
    _launch("attention", grid, _ATTENTION_WARPS * _WARP, q, k, v, added, kept, out, *map(np.int32, sizes),
            *map(np.int64, (*steps, *strides)), np.float32(scale), np.int32(guard))  # fmt: skip
    return out
