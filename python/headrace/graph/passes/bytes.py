"""Keeps quantised tensors in bytes where an op only moves them, or makes each of one of them.

``DequantizeLinear`` sinks through ops that move elements, and meets the next ``QuantizeLinear``: if both say the same,
neither is needed. What stands between the two and looks at one element at a time is a function of 256 bytes,
``QuantizedMap(X, table)``: the byte b becomes ``table[b]`` (of int8, as its bits are counted).
"""

from __future__ import annotations

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    add_constant,
    attribute,
    constant,
    fused,
    is_constant,
    is_used,
    producer,
    replace_node,
    substitute,
)
from headrace.graph.passes.clean import evaluate
from headrace.graph.passes.quantization import BYTES, Quantization, dequantized, quantization_of, quantized_as

# Ops that move the elements of their first input, and the opset from which they take bytes.
_MOVERS = {
    "Identity": 1,
    "Reshape": 1,
    "Flatten": 9,
    "Squeeze": 1,
    "Unsqueeze": 1,
    "Transpose": 1,
    "Slice": 1,
    "Gather": 1,
    "Expand": 8,
    "DepthToSpace": 1,
    "SpaceToDepth": 1,
    "MaxPool": 12,
}

# Ops that look at one element at a time; other inputs than the first must be single constants.
_UNARY = frozenset(
    {"Abs", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"}
    | {"Log", "Mish", "Neg", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt"}
    | {"Swish", "Tanh", "ThresholdedRelu", "QuantizeLinear", "DequantizeLinear"}
    | {"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow"}
)

# Ops between two QuantizeLinears, their own pairs included.
_CHAIN_MAX = 24


def move_bytes(graph: ir.Graph, opset: int) -> bool:
    """Sinks DequantizeLinears through ops that only move elements, and drops pairs that undo each other.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if node.domain != "" or not is_used(node):
            continue
        if node.op_type == "QuantizeLinear":
            changed |= _cancel(graph, node)
        elif node.op_type == "Concat" or _MOVERS.get(node.op_type, opset + 1) <= opset:
            changed |= _sink(graph, node)
    return changed


def _cancel(graph: ir.Graph, node: ir.Node) -> bool:
    found, wanted = dequantized(node.inputs[0]), quantized_as(node)
    if found is None or wanted is None or found[1] != wanted:
        return False
    if node.outputs[0].is_graph_output() and found[0].is_graph_input():
        return False
    substitute(graph, node.outputs[0], found[0])
    return True


def _sink(graph: ir.Graph, node: ir.Node) -> bool:
    moved = list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]
    found = [dequantized(value) for value in moved]
    first = found[0]
    if first is None or any(other is None or other[1] != first[1] for other in found):
        return False
    if is_constant(first[0]):  # weights, which `quantized_constant` follows through a Transpose
        return False
    if len(node.outputs) > 1 and any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    output = node.outputs[0]
    inputs = [*(other[0] for other in found if other is not None), *node.inputs[len(moved) :]]
    new = ir.node(node.op_type, inputs, node.attributes, version=node.version, name=node.name)
    new.outputs[0].type, new.outputs[0].shape = ir.TensorType(first[1].dtype), output.shape
    dequantize = moved[0].producer() if moved[0] is not None else None
    assert dequantize is not None
    graph.insert_before(node, new)
    back = ir.node(
        "DequantizeLinear", [new.outputs[0], *dequantize.inputs[1:]], dequantize.attributes, version=dequantize.version
    )
    replace_node(graph, output, back)
    return True


def map_bytes(graph: ir.Graph, opsets: dict[str, int]) -> bool:
    """Makes a QuantizedMap of every QuantizeLinear whose every byte depends on one byte alone.

    Returns:
        Whether the graph changed.
    """
    changed = False
    # From the outputs on, so that the longest chains become maps.
    for node in reversed(list(graph)):
        if not is_used(node) or quantized_as(node) is None:
            continue
        chain = _Chain(opsets)
        if not chain.follow(node) or chain.source is None:
            continue
        table = chain.table(node)
        if table is None:
            continue
        bits = add_constant(graph, f"{node.outputs[0].name}_table", table.view(np.uint8))
        replace_node(graph, node.outputs[0], fused("QuantizedMap", [chain.source, bits]))
        changed = True
    return changed


class _Chain:
    """The ops behind a value, as far back as the one tensor of bytes that all of them start from."""

    def __init__(self, opsets: dict[str, int]) -> None:
        self._opsets = opsets
        self.source: ir.Value | None = None
        self._nodes: list[ir.Node] = []  # each behind those it reads

    def follow(self, node: ir.Node) -> bool:
        """Whether `node` and all it depends on look at single elements of one `source`."""
        if node in self._nodes:
            return True
        if node.domain != "" or node.op_type not in _UNARY or len(self._nodes) >= _CHAIN_MAX:
            return False
        quantization: Quantization | None = None
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            value = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
            quantization = quantization_of(node, value.dtype if value is not None else None)
            if quantization is None:
                return False
        for index, value in enumerate(node.inputs):
            if value is None or (index > 0 and quantization is not None):
                continue
            if is_constant(value):
                array = constant(value)
                if array is None or array.size != 1 or array.ndim > 0:
                    return False
            elif not self._reach(value):
                return False
        self._nodes.append(node)
        return True

    def _reach(self, value: ir.Value) -> bool:
        before = value.producer()
        if value.dtype in BYTES:
            quantized = producer(value, "QuantizeLinear")
            # Through a pair in the middle of a chain, if that leads to the source as well.
            kept = self.source, list(self._nodes)
            if quantized is not None and self.follow(quantized):
                return True
            self.source, self._nodes = kept
            if self.source not in (None, value):
                return False
            self.source = value
            return True
        return before is not None and value.dtype == ir.DataType.FLOAT and self.follow(before)

    def table(self, last: ir.Node) -> np.ndarray | None:
        """What becomes of each byte, in the reference evaluator."""
        assert self.source is not None
        assert self.source.dtype is not None
        known = {self.source: np.arange(256, dtype=np.uint8).view(self.source.dtype.numpy())}
        for node in self._nodes:
            arrays = [
                None if value is None else known[value] if value in known else constant(value) for value in node.inputs
            ]
            result = evaluate(node, arrays, self._opsets)
            if result is None or result.shape != (256,):
                return None
            known[node.outputs[0]] = result
        return known[last.outputs[0]]


def is_per_tensor(node: ir.Node) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has one scale for all elements."""
    scale = constant(node.inputs[1])
    return scale is not None and scale.size == 1 and not attribute(node, "block_size", 0)
