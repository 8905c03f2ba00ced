"""Folds BatchNormalization into the Conv before it, and fuses bias, residual and activation into FusedConv.

``FusedConv(X, W, B?, residual?) = activation(Conv(X, W) + B + residual)``, W constant. Only float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
    constant,
    derived_tensor,
    dims,
    fused,
    input_at,
    is_constant,
    is_op,
    is_used,
    producer,
    replace_node,
    single_use,
    static_dims,
)
from headrace.graph.passes.activation import activation_after

Array = np.ndarray[Any, Any]

# BatchNormalization's four vectors: a few thousand channels at most.
_VECTOR_BYTES_MAX = 1 << 22


def fuse_conv(graph: ir.Graph) -> bool:
    """Makes a FusedConv of every Conv with constant weights.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if _convertible(node):
            _convert(graph, node)
            changed = True
    order = {output: position for position, node in enumerate(graph) for output in node.outputs}
    for node in list(graph):
        if is_op(node, "Add") and is_used(node):
            changed |= _absorb_residual(graph, node, order)
    for node in list(graph):
        if is_op(node, "FusedConv", domain=HEADRACE_DOMAIN) and is_used(node):
            changed |= _absorb_activation(graph, node)
    return changed


def _convertible(node: ir.Node) -> bool:
    if not is_op(node, "Conv") or not is_used(node) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    bias = input_at(node, 2)
    return is_constant(node.inputs[1]) and (bias is None or is_constant(bias)) and not is_constant(node.inputs[0])


def _convert(graph: ir.Graph, node: ir.Node) -> None:
    weight, bias, output = node.inputs[1], input_at(node, 2), node.outputs[0]
    assert weight is not None
    assert weight.const_value is not None
    shape = list(static_dims(weight.const_value))
    norm = _batch_norm(output, shape[0])
    if norm is not None:
        batch_norm, factor, shift = norm
        old_bias = np.zeros(shape[0], dtype=np.float64)
        if bias is not None and bias.const_value is not None:
            old_bias = bias.const_value.numpy().astype(np.float64)
        spread = factor.reshape(-1, *[1] * (len(shape) - 1))
        scaled = derived_tensor(
            ir.DataType.FLOAT, shape, [weight], lambda array: (array.astype(np.float64) * spread).astype(np.float32)
        )
        weight = add_constant(graph, f"{weight.name}_bn", scaled)
        bias = add_constant(graph, f"{weight.name}_bias", (old_bias * factor + shift).astype(np.float32))
        output = batch_norm.outputs[0]
    attributes = {**node.attributes, "activation": ir.AttrString("activation", "none")}
    replace_node(graph, output, fused("FusedConv", [node.inputs[0], weight, bias], attributes))


def _batch_norm(value: ir.Value, channels: int) -> tuple[ir.Node, Array, Array] | None:
    """The BatchNormalization that alone uses `value`, with its vectors."""
    node = single_use(value)
    if node is None or not is_op(node, "BatchNormalization"):
        return None
    vectors = batch_norm_vectors(node, channels)
    return None if vectors is None else (node, *vectors)


def batch_norm_vectors(node: ir.Node, channels: int) -> tuple[Array, Array] | None:
    """A BatchNormalization as y = x * factor + shift per channel, both float64, or None where it is not constant."""
    if attribute(node, "training_mode", 0):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    vectors = [constant(parameter, _VECTOR_BYTES_MAX) for parameter in node.inputs[1:]]
    kept = [vector.astype(np.float64) for vector in vectors if vector is not None and vector.shape == (channels,)]
    if len(kept) != 4:
        return None
    scale, offset, mean, variance = kept
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, offset - mean * factor


def _absorb_residual(graph: ir.Graph, add: ir.Node, order: dict[ir.Value, int]) -> bool:
    def position(value: ir.Value | None) -> int:
        return -1 if value is None else order.get(value, -1)

    # Of two Convs the later one takes the sum: the other operand then comes from before it.
    later = 0 if position(add.inputs[0]) >= position(add.inputs[1]) else 1
    for index in (later, 1 - later):
        conv = producer(add.inputs[index], "FusedConv", domain=HEADRACE_DOMAIN)
        other = add.inputs[1 - index]
        if conv is None or other is None or input_at(conv, 3) is not None or attribute(conv, "activation") != "none":
            continue
        shape = dims(conv.outputs[0])
        if single_use(conv.outputs[0]) is not add or shape is None or shape != dims(other):
            continue
        inputs = [*conv.inputs, *[None] * (3 - len(conv.inputs)), other]
        place = order[add.outputs[0]]
        order[replace_node(graph, add.outputs[0], fused("FusedConv", inputs, dict(conv.attributes)))] = place
        return True
    return False


def _absorb_activation(graph: ir.Graph, conv: ir.Node) -> bool:
    found = activation_after(conv.outputs[0]) if attribute(conv, "activation") == "none" else None
    if found is None:
        return False
    attributes = {**conv.attributes, "activation": ir.AttrString("activation", found.name)}
    for name, bound in found.attributes.items():
        attributes[name] = ir.AttrFloat32(name, bound)
    replace_node(graph, found.output, fused("FusedConv", list(conv.inputs), attributes))
    return True
