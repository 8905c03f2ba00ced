"""How far the integers of a graph's inputs may go: the rows of the tables that they look up."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import attribute, dims, is_constant


def index_ranges(graph: ir.Graph) -> dict[str, int]:
    """For each input that looks up constant tables: the length of the shortest of them along the axis looked up."""
    found = dict[str, int]()
    for value in graph.inputs:
        lengths = list(_tables(value))
        if lengths:
            found[str(value.name)] = min(lengths)
    return found


def _tables(value: ir.Value) -> Iterator[int]:
    for node, index in value.uses():
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten") and index == 0:
            yield from _tables(node.outputs[0])
        elif node.op_type == "Gather" and index == 1:
            yield from _length(node.inputs[0], attribute(node, "axis", 0))
        elif node.op_type == "EmbeddingNorm" and index >= 3:  # scale, bias, then rows and ids by turns
            yield from _length(node.inputs[index - 1], 0)


def _length(table: ir.Value | None, axis: int) -> Iterator[int]:
    shape = dims(table)
    if table is not None and is_constant(table) and shape:
        length = shape[axis]
        if isinstance(length, int):
            yield length
