"""Fuses the sum of a text's embeddings and the LayerNorm behind it into EmbeddingNorm."""

from __future__ import annotations

from typing import NamedTuple

from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import (
    attribute,
    dims,
    fused,
    input_at,
    is_constant,
    is_op,
    is_used,
    producer,
    replace_node,
    single_use,
)

_TERMS_MAX = 3
_IDS = (ir.DataType.INT32, ir.DataType.INT64)


class _Term(NamedTuple):
    """What is added: the rows of a table that `ids` name, or without ids the rows themselves."""

    rows: ir.Value
    ids: ir.Value | None
    leading: tuple[Dim, ...]  # the dims along which it has rows


def fuse_embeddings(graph: ir.Graph) -> bool:
    """Makes EmbeddingNorm nodes of LayerNormalizations whose input is a sum of looked-up rows.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "LayerNormalization") and is_used(node) and node.outputs[0].dtype == ir.DataType.FLOAT:
            changed |= _fuse(graph, node)
    return changed


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    summed, scale = node.inputs[0], node.inputs[1]
    shape = dims(summed)
    if summed is None or shape is None or len(shape) < 2 or attribute(node, "axis", -1) not in (-1, len(shape) - 1):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    if attribute(node, "stash_type", 1) != 1:
        return False
    if dims(scale) != shape[-1:] or (len(node.inputs) > 2 and dims(input_at(node, 2)) != shape[-1:]):
        return False
    terms = [_term(value) for value in _addends(summed)]
    found = [term for term in terms if term is not None]
    # The sum of the first two may be taken in either order.
    first = next((term for term in found[:2] if term.ids is not None and term.leading == shape[:-1]), None)
    if first is None or len(found) < len(terms):
        return False
    if not all(_repeats(term.leading, shape[:-1]) and _width(term) == shape[-1] for term in found):
        return False
    found.remove(first)
    inputs = [scale, input_at(node, 2)]
    for term in (first, *found):
        inputs += [term.rows, term.ids]
    replace_node(graph, node.outputs[0], fused("EmbeddingNorm", inputs, {"epsilon": attribute(node, "epsilon", 1e-5)}))
    return True


def _addends(value: ir.Value) -> list[ir.Value | None]:
    """The terms of a sum of up to three, in the order in which they are added."""
    add = producer(value, "Add")
    if add is None or single_use(value) is None:
        return [value]
    left, right = add.inputs
    for inner, last in ((left, right), (right, left)):
        deeper = producer(inner, "Add")
        if inner is not None and deeper is not None and single_use(inner) is not None:
            return [*deeper.inputs, last][:_TERMS_MAX]
    return [left, right]


def _term(value: ir.Value | None) -> _Term | None:
    gather = producer(value, "Gather")
    if value is not None and gather is not None and single_use(value) is not None:
        table, ids = gather.inputs
        leading = dims(ids)
        if (
            table is not None
            and ids is not None
            and leading is not None
            and is_constant(table)
            and len(dims(table) or ()) == 2
            and attribute(gather, "axis", 0) in (0, -2)
            and ids.dtype in _IDS
        ):
            return _Term(table, ids, leading)
    shape = dims(value)
    return None if value is None or not shape or value.dtype != ir.DataType.FLOAT else _Term(value, None, shape[:-1])


def _width(term: _Term) -> Dim | None:
    shape = dims(term.rows)
    return shape[-1] if shape else None


def _repeats(leading: tuple[Dim, ...], whole: tuple[Dim, ...]) -> bool:
    """Whether rows along `leading` serve rows along `whole` by repeating as they are."""
    skipped = 0
    while skipped < len(leading) and leading[skipped] == 1:
        skipped += 1
    rest = leading[skipped:]
    return len(leading) <= len(whole) and rest == whole[len(whole) - len(rest) :]
