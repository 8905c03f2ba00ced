"""The torch function of each op: ``translate(node, opset)`` gives a callable from input tensors to outputs.

Four tables, one per kind of op: `arithmetic`, `shapes`, `networks` and `fused` (Headrace's own).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from headrace.graph.lower import tensor_array

# A maker reads the node's attributes once and returns the function that runs at every call.
Maker = Callable[["Attributes", int], Callable[..., Any]]


class Untranslated(Exception):
    """Why a node has no torch translation."""


class Attributes:
    """A node's attributes as plain values."""

    def __init__(self, node: ir.Node) -> None:
        self._values: dict[str, Any] = {}
        for name, attr in node.attributes.items():
            if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise Untranslated(f"attribute {name!r} is a subgraph")
            self._values[name] = attr.value
        self.inputs = len(node.inputs)
        self.outputs = len(node.outputs)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, or `default` if it is absent; tensors as numpy arrays."""
        value = self._values.get(name, default)
        if isinstance(value, ir.TensorProtocol):
            return tensor_array(value)
        return list(value) if isinstance(value, tuple) else value


def key_of(node: ir.Node) -> str:
    """The op's name, with its domain in front if it is not ONNX's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def translate(node: ir.Node, opset: int) -> Callable[..., Any]:
    """The function that runs `node`.

    Raises:
        Untranslated: There is none for this op, or for this variant of it.
    """
    from headrace.backends.torch import arithmetic, fused, networks, shapes

    key = key_of(node)
    for table in (arithmetic.OPS, shapes.OPS, networks.OPS, fused.OPS):
        if key in table:
            if any(value.dtype == ir.DataType.STRING for value in node.inputs if value is not None):
                raise Untranslated("torch has no string tensors")
            return table[key](Attributes(node), opset)
    raise Untranslated("no torch translation for this op")
