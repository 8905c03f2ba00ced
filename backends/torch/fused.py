"""Headrace's own ops, which the graph passes make out of ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from headrace.backends.torch.networks import OPS as NETWORKS
from headrace.backends.torch.networks import convolution
from headrace.backends.torch.ops import Maker

from headrace.graph.script import Attributes, Untranslated

Tensor = torch.Tensor

# Of what a product has just made: they may write over it.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
}


def _activation(attributes: Attributes) -> Callable[[Tensor], Tensor]:
    name = attributes.get("activation", "none")
    if name == "clip":
        return lambda x: torch.clamp(x, attributes.get("clip_min"), attributes.get("clip_max"))
    if name not in ACTIVATIONS:
        raise Untranslated(f"got activation {name!r}, expected one of {', '.join(ACTIVATIONS)} or clip")
    return ACTIVATIONS[name]


def _linear(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    activate = _activation(attributes)

    def run(x: Tensor, weights: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        if bias is not None and bias.dim() == 1 and weights.dim() == 2 and bias.dtype == weights.dtype:
            out = activate(F.linear(x, weights.t(), bias))
        else:
            product = torch.matmul(x, weights)
            out = activate(product if bias is None else product + bias)
        return out if residual is None else out + residual

    return run


def _fused_conv(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    convolve, activate = convolution(attributes), _activation(attributes)

    if attributes.get("layout", "nchw") == "nhwc":
        convolve = _channels_last(convolve)

    def run(x: Tensor, weights: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        out = convolve(x, weights, bias)
        return activate(out if residual is None else out + residual)

    return run


def _channels_last(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` of [N, C, spatial...] for [N, spatial..., C]. Views: torch convolves such tensors where they lie."""
    return lambda x, *others: function(x.movedim(-1, 1), *others).movedim(1, -1)


def _pool(name: str) -> Maker:
    def make(attributes: Attributes, opset: int) -> Callable[..., Any]:
        if attributes.get("layout") != "nhwc":
            raise Untranslated(f"got layout {attributes.get('layout')!r}, expected 'nhwc'")
        return _channels_last(NETWORKS[name](attributes, opset))

    return make


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H*D] -> [B, H, S, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attention(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    heads = attributes.get("num_heads")
    kv_heads = attributes.get("kv_heads", heads)
    scale, layout = attributes.get("scale"), attributes.get("layout", "bsd")
    guard = attributes.get("guard_nan", 0)
    if layout not in ("bsd", "bhsd", "qkv"):
        raise Untranslated(f"got layout {layout!r}, expected bsd, bhsd or qkv")

    def run(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if layout == "qkv":
            q, k, v = q.chunk(3, -1)
        assert k is not None
        assert v is not None
        if layout != "bhsd":
            q, k, v = _split_heads(q, heads), _split_heads(k, kv_heads), _split_heads(v, kv_heads)
        if heads != kv_heads:
            k, v = k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1)
        out = attention(q, k, v, mask, scale, guard)
        return out if layout == "bhsd" else out.transpose(1, 2).flatten(2)

    return run


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, guard: bool) -> Tensor:
    """Softmax(q @ k^T * scale + mask) @ v over [B, H, S, D]; with `guard`, zeros where all keys are masked."""
    if mask is None or guard:
        given = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, given, scale=scale)
        # Where all keys are masked, some of torch's kernels give zeros and some NaN.
        return out.masked_fill(out.isnan(), 0.0) if guard else out
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(torch.softmax(scores, -1).to(v.dtype), v)


def _embedding_norm(attributes: Attributes, _opset: int) -> Callable[..., Any]:
    epsilon = attributes.get("epsilon", 1e-5)

    def run(scale: Tensor, bias: Tensor | None, *pairs: Tensor | None) -> Tensor:
        total = None
        for rows, ids in zip(pairs[::2], [*pairs[1::2], None], strict=False):
            if rows is None:
                continue
            term = rows if ids is None else rows[ids]
            total = term if total is None else total + term
        assert total is not None
        return torch.nn.functional.layer_norm(total, scale.shape, scale, bias, epsilon)

    return run


OPS: dict[str, Maker] = {
    "headrace.EmbeddingNorm": _embedding_norm,
    "headrace.Linear": _linear,
    "headrace.FusedConv": _fused_conv,
    "headrace.MaxPool": _pool("MaxPool"),
    "headrace.AveragePool": _pool("AveragePool"),
    "headrace.Attention": _attention,
}
