"""Headrace's own ops, which the graph passes make out of ONNX's.

On a CUDA device the raw kernels of `kernels` run what is between the products of matrices. What stands here is the same
in the array API: it runs everywhere else, and is what the kernels must agree with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headrace.backends.cupy import kernels
from headrace.backends.cupy.arithmetic import clip, gelu, gelu_tanh, relu, sigmoid
from headrace.backends.cupy.arrays import Array, library
from headrace.backends.cupy.networks import OPS as NETWORKS
from headrace.backends.cupy.networks import convolution, layer_norm, softmax
from headrace.backends.cupy.ops import Maker
from headrace.backends.cupy.shapes import gather

from headrace.graph.script import Attributes, Untranslated

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": relu,
    "gelu_erf": gelu,
    "gelu_tanh": gelu_tanh,
    "sigmoid": sigmoid,
    "tanh": lambda x: library(x).tanh(x),
    "silu": lambda x: x * sigmoid(x),
}


def activation_of(attributes: Attributes) -> Callable[[Array], Array]:
    """What the attribute ``activation`` names.

    Raises:
        Untranslated: There is no such activation.
    """
    name = attributes.get("activation", "none")
    if name == "clip":
        low, high = attributes.get("clip_min"), attributes.get("clip_max")
        return lambda x: clip(x, low, high)
    if name not in ACTIVATIONS:
        raise Untranslated(f"got activation {name!r}, expected one of {', '.join(ACTIVATIONS)} or clip")
    return ACTIVATIONS[name]


def _linear(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    name, activate = attributes.get("activation", "none"), activation_of(attributes)

    def run(x: Array, weights: Array, bias: Array | None = None, residual: Array | None = None) -> Array:
        y = library(x).matmul(x, weights)
        fast = kernels.epilogue(name, y, bias, residual)
        if fast is not None:
            return fast
        y = activate(y if bias is None else y + bias)
        return y if residual is None else y + residual

    return run


def _fused_conv(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    convolve, activate = convolution(attributes), activation_of(attributes)
    if attributes.get("layout", "nchw") == "nhwc":
        convolve = channels_last(convolve)

    def run(x: Array, weights: Array, bias: Array | None = None, residual: Array | None = None) -> Array:
        y = convolve(x, weights, bias)
        return activate(y if residual is None else y + residual)

    return run


def channels_last(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of [N, C, spatial...] for [N, spatial..., C]."""

    def run(x: Array, *others: Array) -> Array:
        xp = library(x)
        return xp.moveaxis(function(xp.moveaxis(x, -1, 1), *others), 1, -1)

    return run


def _pool(name: str) -> Maker:
    def make(attributes: Attributes, opset: int) -> Callable[..., Any]:
        if attributes.get("layout") != "nhwc":
            raise Untranslated(f"got layout {attributes.get('layout')!r}, expected 'nhwc'")
        return channels_last(NETWORKS[name](attributes, opset))

    return make


def _split_heads(x: Array, heads: int) -> Array:
    """[B, S, H*D] -> [B, H, S, D]."""
    xp = library(x)
    return xp.permute_dims(xp.reshape(x, (x.shape[0], x.shape[1], heads, x.shape[2] // heads)), (0, 2, 1, 3))


def _attention(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    heads = attributes.get("num_heads")
    kv_heads = attributes.get("kv_heads", heads)
    scale, layout = attributes.get("scale"), attributes.get("layout", "bsd")
    guard = bool(attributes.get("guard_nan", 0))
    if layout not in ("bsd", "bhsd", "qkv"):
        raise Untranslated(f"got layout {layout!r}, expected bsd, bhsd or qkv")

    def run(q: Array, k: Array | None = None, v: Array | None = None, mask: Array | None = None) -> Array:
        if layout == "qkv":
            width = q.shape[-1] // 3
            q, k, v = q[..., :width], q[..., width : 2 * width], q[..., 2 * width :]
        if layout != "bhsd":
            q, k, v = _split_heads(q, heads), _split_heads(k, kv_heads), _split_heads(v, kv_heads)
        assert k is not None
        assert v is not None
        out = kernels.attention(q, k, v, mask, scale, guard)
        if out is None:
            out = attention(q, k, v, mask, scale, guard)
        if layout == "bhsd":
            return out
        xp = library(out)
        return xp.reshape(xp.permute_dims(out, (0, 2, 1, 3)), (out.shape[0], out.shape[2], heads * out.shape[3]))

    return run


def attention(q: Array, k: Array, v: Array, mask: Array | None, scale: float, guard: bool) -> Array:
    """Softmax(q @ k^T * scale + mask) @ v.

    Args:
        q: Queries, [B, H, S, D].
        k: Keys, [B, KV, T, D]; H is a multiple of KV, and neighbouring query heads share one.
        v: Values, [B, KV, T, E].
        mask: Added to the scores, or, where it is bool, False for keys that do not count. Broadcast to [B, H, S, T].
        scale: Of the scores.
        guard: Whether a query whose keys are all masked gets zeros, not NaN.
    """
    xp = library(q)
    times = q.shape[1] // k.shape[1]
    if times > 1:
        k, v = xp.repeat(k, times, axis=1), xp.repeat(v, times, axis=1)
    scores = xp.matmul(q, xp.matrix_transpose(k)) * scale
    if mask is not None and xp.isdtype(mask.dtype, "bool"):
        scores = xp.where(mask, scores, xp.full_like(scores, -math.inf))
    elif mask is not None:
        scores = scores + mask
    if not guard:
        return xp.matmul(softmax(scores), v)
    top = xp.max(scores, axis=-1, keepdims=True)
    powers = xp.exp(scores - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    total = xp.sum(powers, axis=-1, keepdims=True)
    return xp.matmul(powers / xp.where(total == 0, xp.ones_like(total), total), v)


def _embedding_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    epsilon = attributes.get("epsilon", 1e-5)

    def run(scale: Array, bias: Array | None, *pairs: Array | None) -> Array:
        terms = [(rows, ids) for rows, ids in zip(pairs[::2], [*pairs[1::2], None], strict=False) if rows is not None]
        fast = kernels.embedding_norm(scale, bias, terms, epsilon)
        if fast is not None:
            return fast
        total = None
        for rows, ids in terms:
            term = rows if ids is None else gather(rows, ids, 0)
            total = term if total is None else total + term
        return layer_norm(total, scale, bias, epsilon)

    return run


OPS: dict[str, Maker] = {
    "headrace.EmbeddingNorm": _embedding_norm,
    "headrace.Linear": _linear,
    "headrace.FusedConv": _fused_conv,
    "headrace.MaxPool": _pool("MaxPool"),
    "headrace.AveragePool": _pool("AveragePool"),
    "headrace.Attention": _attention,
}
