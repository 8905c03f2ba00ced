"""Fuses LayerNorm and RMSNorm that were exported as small ops."""

from __future__ import annotations

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    add_constant,
    attribute,
    dims,
    input_at,
    ints,
    is_constant,
    is_op,
    is_used,
    producer,
    replace_node,
    same_rank,
    scalar,
    single_use,
    static_dims,
)


def fuse_norms(graph: ir.Graph) -> bool:
    """Makes LayerNormalization and RMSNormalization nodes over the last axis.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "Div", "Mul") and is_used(node) and node.outputs[0].dtype == ir.DataType.FLOAT:
            changed |= _fuse(graph, node)
    return changed


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    """`node` divides some x by sqrt(mean(x^2) + epsilon): a LayerNorm where x is y - mean(y), else an RMSNorm."""
    for value, root in _quotients(node):
        epsilon = _root_mean_square(value, root)
        if epsilon is None:
            continue
        centred = producer(value, "Sub")
        source = centred.inputs[0] if centred is not None else None
        if centred is not None and source is not None and _is_mean_of(centred.inputs[1], source):
            return _emit(graph, node, "LayerNormalization", source, epsilon)
        return _emit(graph, node, "RMSNormalization", value, epsilon)
    return False


def _quotients(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """The (x, r) for which `node` computes x / r."""
    left, right = node.inputs
    if left is None or right is None:
        return []
    if node.op_type == "Div":
        return [(left, right)]
    found = []
    for value, factor in ((left, right), (right, left)):
        inverse = producer(factor, "Reciprocal")
        if inverse is not None and inverse.inputs[0] is not None:
            found.append((value, inverse.inputs[0]))
        inverse = producer(factor, "Div")
        if inverse is not None and scalar(inverse.inputs[0]) == 1.0 and inverse.inputs[1] is not None:
            found.append((value, inverse.inputs[1]))
    return found


def _root_mean_square(value: ir.Value, root: ir.Value) -> float | None:
    """The epsilon for which `root` is sqrt(mean(value^2) + epsilon) over the last axis, or None."""
    sqrt = producer(root, "Sqrt")
    add = producer(sqrt.inputs[0], "Add") if sqrt is not None else None
    if add is None:
        return None
    for mean, epsilon in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
        number = scalar(epsilon)
        reduce = producer(mean, "ReduceMean")
        if number is None or reduce is None or not _over_last_axis(reduce):
            continue
        power = producer(reduce.inputs[0], "Pow")
        if power is not None and power.inputs[0] is value and scalar(power.inputs[1]) == 2.0:
            return number
        square = producer(reduce.inputs[0], "Mul")
        if square is not None and square.inputs[0] is value and square.inputs[1] is value:
            return number
    return None


def _is_mean_of(value: ir.Value | None, source: ir.Value) -> bool:
    reduce = producer(value, "ReduceMean")
    return reduce is not None and reduce.inputs[0] is source and _over_last_axis(reduce)


def _over_last_axis(reduce: ir.Node) -> bool:
    axes_value = input_at(reduce, 1)
    axes = ints(axes_value) if axes_value is not None else attribute(reduce, "axes")
    shape = reduce.inputs[0].shape if reduce.inputs[0] is not None else None
    last = [-1] if shape is None else [-1, len(shape) - 1]
    return axes is not None and len(axes) == 1 and axes[0] in last and attribute(reduce, "keepdims", 1) == 1


def _emit(graph: ir.Graph, node: ir.Node, op_type: str, source: ir.Value, epsilon: float) -> bool:
    shape = dims(source)
    if shape is None or not shape or not isinstance(shape[-1], int) or not same_rank(source, node.outputs[0]):
        return False
    width, output = shape[-1], node.outputs[0]
    scale = _next_constant(output, "Mul", width)
    if scale is not None:
        output = scale[1]
    shift = _next_constant(output, "Add", width) if op_type == "LayerNormalization" else None
    gamma = scale[0] if scale is not None else add_constant(graph, "ones", np.ones(width, dtype=np.float32))
    inputs = [source, gamma]
    if shift is not None:
        inputs.append(shift[0])
        output = shift[1]
    replace_node(graph, output, ir.node(op_type, inputs, {"axis": -1, "epsilon": epsilon, "stash_type": 1}))
    return True


def _next_constant(value: ir.Value, op_type: str, width: int) -> tuple[ir.Value, ir.Value] | None:
    """The constant of shape [width] that the only user of `value` multiplies by or adds, and that user's output."""
    user = single_use(value)
    if not is_op(user, op_type) or user is None:
        return None
    other = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
    if other is None or not is_constant(other) or other.const_value is None:
        return None
    tensor = other.const_value
    if tensor.dtype != ir.DataType.FLOAT or static_dims(tensor) != (width,):
        return None
    return other, user.outputs[0]
