"""The function of each op over `Ragged` values: Triton's kernels where there are some, torch's functions elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from headrace.backends.torch import ops as torch_ops
from headrace.backends.triton import kernels
from headrace.backends.triton.ragged import Ragged, each

from headrace.graph.script import Attributes, Step, key_of

Tensor = torch.Tensor
# Makes the function of a node out of its attributes and what runs it otherwise; None where the kernel does not apply.
Maker = Callable[[ir.Node, Attributes, Callable[..., Any]], Callable[..., Any] | None]


def translate(node: ir.Node, opset: int) -> Step:
    """The Step that runs `node`.

    Raises:
        Untranslated: There is none for this op, or for this variant of it.
    """
    step = torch_ops.translate(node, opset)  # whatever place its constants are best in: ours lie plainly
    otherwise = each(step.function, len(node.outputs))
    make = OPS.get(key_of(node))
    known = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if make is None or len(node.outputs) != 1 or (key_of(node) == "Softmax" and opset < 13):
        return Step(otherwise)
    if any(dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL) for dtype in known):
        return Step(otherwise)
    return Step(make(node, Attributes(node), otherwise) or otherwise)


def runs_in_triton(node: ir.Node, opset: int) -> bool:
    """Whether a kernel of Triton's runs `node`, if the shapes of a Request allow it."""
    function = translate(node, opset).function
    return getattr(function, "__module__", "") == __name__


def _rank_of_constant(node: ir.Node, index: int) -> int | None:
    """The rank of constant input `index`; 0 for an absent one, None for one that is not constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return 0
    return None if value.const_value is None else len(value.const_value.shape)


def _is_computed(node: ir.Node, index: int) -> bool:
    """Whether input `index` is absent or differs between Requests."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is None or value.const_value is None


def _linear(node: ir.Node, attributes: Attributes, otherwise: Callable[..., Any]) -> Callable[..., Any] | None:
    activation = attributes.get("activation", "none")
    if activation not in kernels.ACTIVATIONS or _rank_of_constant(node, 1) != 2 or not _is_computed(node, 3):
        return None
    if _rank_of_constant(node, 2) not in (0, 1):
        return None

    def run(x: Ragged, weights: Tensor, bias: Tensor | None = None, residual: Ragged | None = None) -> Any:
        shapes = [torch.Size((*shape[:-1], weights.shape[1])) for shape in x.shapes]
        if residual is not None and residual.shapes != shapes:
            return otherwise(x, weights, bias, residual)
        added = None if residual is None else residual.rows
        return Ragged(rows=kernels.linear(x.rows, weights, bias, added, activation), shapes=shapes)

    return run


def _norm(centred: bool) -> Maker:
    def make(node: ir.Node, attributes: Attributes, otherwise: Callable[..., Any]) -> Callable[..., Any] | None:
        epsilon = attributes.get("epsilon", 1e-5)
        bias_rank = _rank_of_constant(node, 2)
        if attributes.get("axis", -1) != -1 or _rank_of_constant(node, 1) != 1 or bias_rank not in (0, 1):
            return None

        def run(x: Ragged, scale: Tensor, bias: Tensor | None = None) -> Any:
            width = x.shapes[0][-1]
            if width > kernels.WIDTH_MAX or scale.shape != (width,) or (bias is not None and bias.shape != (width,)):
                return otherwise(x, scale, bias) if bias is not None else otherwise(x, scale)
            return Ragged(rows=kernels.norm(x.rows, scale, bias, epsilon, centred=centred), shapes=x.shapes)

        return run

    return make


def _softmax(node: ir.Node, attributes: Attributes, otherwise: Callable[..., Any]) -> Callable[..., Any] | None:
    if attributes.get("axis", -1) != -1 or not _is_computed(node, 0):
        return None

    def run(x: Ragged) -> Any:
        widths = {shape[-1] for shape in x.shapes}
        if max(widths) > kernels.WIDTH_MAX:
            return otherwise(x)
        if len(widths) > 1:  # rows of different widths are no block
            return x.map(
                lambda part: kernels.softmax(part.reshape(-1, part.shape[-1]).contiguous()).reshape(part.shape)
            )
        return Ragged(rows=kernels.softmax(x.rows), shapes=x.shapes)

    return run


def _softmax_alone(x: Tensor) -> Tensor:
    return kernels.softmax(x.reshape(-1, x.shape[-1]).contiguous()).reshape(x.shape)


def _gelu(node: ir.Node, attributes: Attributes, _otherwise: Callable[..., Any]) -> Callable[..., Any] | None:
    if not _is_computed(node, 0):
        return None
    name = "gelu_tanh" if attributes.get("approximate", "none") == "tanh" else "gelu_erf"

    def run(x: Ragged) -> Any:
        return x.map(lambda part: kernels.unary(part.contiguous(), name))

    return run


def _attention(node: ir.Node, attributes: Attributes, otherwise: Callable[..., Any]) -> Callable[..., Any] | None:
    layout, heads = attributes.get("layout", "bsd"), attributes.get("num_heads")
    kv_heads, scale = attributes.get("kv_heads", heads), attributes.get("scale")
    guard = bool(attributes.get("guard_nan", 0))
    if not all(_is_computed(node, index) for index in range(3)):
        return None

    def run(q: Ragged, k: Ragged | None = None, v: Ragged | None = None, mask: Any = None) -> Any:
        queries = q if layout != "bhsd" else q.map(_merged)
        keys = queries if k is None else k if layout != "bhsd" else k.map(_merged)
        masks = None if mask is None else _masks(mask, queries.shapes, keys.shapes)
        if masks is None and mask is not None:
            return otherwise(q, k, v, mask)
        if layout == "qkv":
            width = queries.shapes[0][-1] // 3
            blocks = queries.rows.split(width, 1)
        else:
            assert v is not None
            blocks = (queries.rows, keys.rows, (v if layout != "bhsd" else v.map(_merged)).rows)
        lengths = [[shape[1] for shape in shapes for _ in range(shape[0])] for shapes in (queries.shapes, keys.shapes)]
        rows = kernels.attention(*blocks, *lengths, masks, heads=heads, kv_heads=kv_heads, scale=scale, guard=guard)
        out = Ragged(rows=rows, shapes=[torch.Size((*shape[:-1], rows.shape[1])) for shape in queries.shapes])
        return out.map(lambda part: part.unflatten(-1, (heads, -1)).transpose(1, 2)) if layout == "bhsd" else out

    return run


def _merged(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, S, H * D]."""
    return x.transpose(1, 2).flatten(2)


def _masks(mask: Any, queries: list[torch.Size], keys: list[torch.Size]) -> list[Tensor] | None:
    """The mask of every sequence, as [1 or queries, keys] to be added; None if it differs between heads."""
    found: list[Tensor] = []
    for index, ((batch, rows, _), (_, columns, _)) in enumerate(zip(queries, keys, strict=True)):
        given = mask.parts[index] if isinstance(mask, Ragged) else mask
        given = given.reshape((1,) * (4 - given.dim()) + tuple(given.shape))
        if given.shape[1] != 1 or given.shape[0] not in (1, batch) or given.shape[2] not in (1, rows):
            return None
        if given.dtype == torch.bool:
            given = torch.zeros(given.shape, device=given.device).masked_fill(~given, float("-inf"))
        wide = given[:, 0].expand(batch, given.shape[2], columns)
        found += list(wide.contiguous())
    return found


OPS: dict[str, Maker] = {
    "headrace.Linear": _linear,
    "headrace.Attention": _attention,
    "LayerNormalization": _norm(centred=True),
    "RMSNormalization": _norm(centred=False),
    "Softmax": _softmax,
    "Gelu": _gelu,
}
