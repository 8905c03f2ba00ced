"""The function of each op: ``translate(node, opset)`` gives a Step over arrays of any library of the array API.

Tables, one per kind of op: `arithmetic`, `shapes`, `networks`, `quantized`, `tables` and `trees` (of ai.onnx.ml), and
`fused` (of Headrace itself).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.graph._onnx_ir import ir
from headrace.graph.script import Attributes, Step, Untranslated, key_of

# A maker reads the node's attributes once and returns the function that runs at every call.
Maker = Callable[[Attributes, int], Callable[..., Any]]

# What may read or write texts; everything else computes.
_TEXTS = frozenset({
    "Identity", "Gather", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Equal",
    "Expand", "Cast", "ai.onnx.ml.OneHotEncoder", "ai.onnx.ml.LabelEncoder", "ai.onnx.ml.LinearClassifier",
    "ai.onnx.ml.TreeEnsembleClassifier", "ai.onnx.ml.ArrayFeatureExtractor",
})  # fmt: skip


def translate(node: ir.Node, opset: int) -> Step:
    """The Step that runs `node`.

    Raises:
        Untranslated: There is none for this op, or for this variant of it.
    """
    from headrace.backends.cupy import arithmetic, fused, networks, quantized, shapes, tables, trees

    key = key_of(node)
    for room in (arithmetic, shapes, networks, fused, quantized, tables, trees):
        table: dict[str, Maker] = room.OPS
        if key in table:
            for value in (*node.inputs, *node.outputs):
                _check_type(value, key)
            return Step(table[key](Attributes(node), opset))
    raise Untranslated("no translation into the array API for this op")


def _check_type(value: ir.Value | None, key: str) -> None:
    if value is None or value.dtype is None:
        return
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise Untranslated(f"value {value.name!r} is a {type(value.type).__name__}, expected a tensor")
    if value.dtype == ir.DataType.STRING:
        if key not in _TEXTS:
            raise Untranslated("texts as input or output")
        return
    from headrace.backends.cupy.arrays import dtype_name

    dtype_name(int(value.dtype))
