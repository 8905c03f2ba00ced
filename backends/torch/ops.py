"""The torch function of each op: ``translate(node, opset)`` gives a Step over tensors.

Four tables, one per kind of op: `arithmetic`, `shapes`, `networks` and `fused` (Headrace's own). Ops that none of them
has are those of the array backend, since torch's tensors keep to the array API too.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import onnx_ir as ir

from headrace.graph.script import Attributes, Step, Untranslated, key_of

# A maker reads the node's attributes once and returns the function that runs at every call.
Maker = Callable[[Attributes, int], Callable[..., Any]]


def translate(node: ir.Node, opset: int) -> Step:
    """The Step that runs `node`.

    Raises:
        Untranslated: There is none for this op, or for this variant of it.
    """
    from headrace.backends.torch import arithmetic, fused, networks, shapes

    key = key_of(node)
    if any(value.dtype == ir.DataType.STRING for value in (*node.inputs, *node.outputs) if value is not None):
        raise Untranslated("torch has no string tensors")
    for table in (arithmetic.OPS, shapes.OPS, networks.OPS, fused.OPS):
        if key in table:
            # Named here, not imported: `executable` has what it means.
            reads = {1: "columns"} if key == "headrace.Linear" else {}
            return Step(table[key](Attributes(node), opset), reads)
    if find_spec("array_api_compat") is None:
        raise Untranslated("no torch translation for this op; more ops run where array-api-compat is installed")
    from headrace.backends.cupy import ops as array_ops

    return array_ops.translate(node, opset)
