"""Recognises activations: single ops that an epilogue can take, and Gelu spelled out in small ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import attribute, input_at, is_op, replace_node, same_rank, scalar, single_use


@dataclass(frozen=True)
class Activation:
    """An activation that follows a value.

    Attributes:
        name: Its name in the `activation` attribute of Linear and FusedConv.
        output: The value it makes.
        attributes: ``clip_min`` and ``clip_max`` for "clip".
    """

    name: str
    output: ir.Value
    attributes: dict[str, float] = field(default_factory=dict)


_SINGLE = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}


def activation_after(value: ir.Value) -> Activation | None:
    """The activation that is the only thing `value` is used for, or None."""
    node = single_use(value)
    if node is None:
        return _silu_after(value)
    if node.domain != "":
        return None
    if node.op_type in _SINGLE:
        return Activation(_SINGLE[node.op_type], node.outputs[0])
    if node.op_type == "Gelu":
        return Activation(
            "gelu_tanh" if attribute(node, "approximate", "none") == "tanh" else "gelu_erf", node.outputs[0]
        )
    if node.op_type == "Swish" and attribute(node, "alpha", 1.0) == 1.0:
        return Activation("silu", node.outputs[0])
    if node.op_type == "Clip" and node.inputs[0] is value:
        return _clip(node)
    return None


def _clip(node: ir.Node) -> Activation | None:
    bounds = []
    for index, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        bound = input_at(node, index)
        number = scalar(bound) if bound is not None else attribute(node, name, default)
        if number is None:
            return None
        bounds.append(float(number))
    return Activation("clip", node.outputs[0], {"clip_min": bounds[0], "clip_max": bounds[1]})


def _silu_after(value: ir.Value) -> Activation | None:
    """X * Sigmoid(x), where nothing else uses x."""
    users = [use.node for use in value.uses()]
    if len(users) != 2 or value.is_graph_output():
        return None
    gate = next((node for node in users if is_op(node, "Sigmoid")), None)
    product = next((node for node in users if is_op(node, "Mul")), None)
    if gate is None or product is None or single_use(gate.outputs[0]) is not product:
        return None
    return Activation("silu", product.outputs[0])


# ---- Gelu in small ops ----

Array = np.ndarray[Any, np.dtype[np.float64]]


def _erf(x: Array) -> Array:
    return np.array([math.erf(element) for element in x])


_POINTWISE: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
    "Erf": _erf,
}

_POINTS: Array = np.concatenate([np.linspace(-6, 6, 61), [-0.013, 0.0021, 17.0, -21.0]])
_GELU = {
    "none": _POINTS * 0.5 * (1 + _erf(_POINTS / math.sqrt(2))),
    "tanh": 0.5 * _POINTS * (1 + np.tanh(math.sqrt(2 / math.pi) * (_POINTS + 0.044715 * _POINTS**3))),
}
# Constants in the graph are rounded to float32; the two forms of Gelu differ by up to 5e-4.
_TOLERANCE = 2e-7

_DEPTH_MAX = 8


def fuse_gelu(graph: ir.Graph) -> bool:
    """Replaces Gelu written as Erf or Tanh with arithmetic around it by one Gelu.

    Exporters spell it in many ways, so it is recognised by what it computes: the ops between one value and another are
    evaluated at fixed points and compared with Gelu there.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "Erf", "Tanh") and node.outputs[0].uses() and node.outputs[0].dtype == ir.DataType.FLOAT:
            changed |= _fuse_around(graph, node, "none" if node.op_type == "Erf" else "tanh")
    return changed


def _fuse_around(graph: ir.Graph, node: ir.Node, kind: str) -> bool:
    sources = _sources(node)
    root: ir.Node | None = node
    for _ in range(4):
        root = single_use(root.outputs[0]) if root is not None else None
        if root is None or root.domain != "" or root.op_type not in ("Add", "Mul", "Div"):
            return False
        for source in sources:
            values = _evaluate(root, source) if same_rank(root.outputs[0], source) else None
            if values is not None and np.allclose(values, _GELU[kind], rtol=_TOLERANCE, atol=_TOLERANCE):
                replace_node(graph, root.outputs[0], ir.node("Gelu", [source], {"approximate": kind}))
                return True
    return False


def _sources(node: ir.Node) -> list[ir.Value]:
    """The values `node` depends on through few pointwise ops, nearest first: one of them may be Gelu's argument."""
    found: dict[ir.Value, None] = {}
    frontier = [value for value in node.inputs if value is not None]
    for _ in range(_DEPTH_MAX):
        after = []
        for value in frontier:
            if value in found or scalar(value) is not None:
                continue
            found[value] = None
            maker = value.producer()
            if maker is not None and maker.domain == "" and maker.op_type in _POINTWISE:
                after += [operand for operand in maker.inputs if operand is not None]
        frontier = after
    return list(found)


def _evaluate(root: ir.Node, source: ir.Value) -> Array | None:
    """What `root` gives at `_POINTS` of `source`, if it depends on nothing else and only it uses what lies between."""
    inner: dict[ir.Node, Array] = {}

    def value_at(value: ir.Value | None, depth: int) -> Array | None:
        if value is source:
            return _POINTS
        number = scalar(value)
        if number is not None:
            return np.array(number)
        node = value.producer() if value is not None else None
        if node is None or node.domain != "" or node.op_type not in _POINTWISE or depth > _DEPTH_MAX:
            return None
        if node not in inner:
            operands = [value_at(operand, depth + 1) for operand in node.inputs]
            if any(operand is None for operand in operands):
                return None
            with np.errstate(all="ignore"):
                inner[node] = _POINTWISE[node.op_type](*operands)
        return inner[node]

    result = value_at(root.outputs[0], 0)
    for node in inner:
        output = node.outputs[0]
        if node is not root and (output.is_graph_output() or any(use.node not in inner for use in output.uses())):
            return None
    return result
