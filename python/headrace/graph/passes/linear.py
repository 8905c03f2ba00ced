"""Fuses MatMul and Gemm with constant weights, and what follows them, into Linear.

``Linear(X, W, bias?, residual?) = activation(X @ W + bias) + residual``, W of shape [K, N]. Only float32.
"""

from __future__ import annotations

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
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


def fuse_linear(graph: ir.Graph) -> bool:
    """Makes Linears, with bias and activation.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if is_op(node, "MatMul", "Gemm") and is_used(node):
            linear = _from_matmul(graph, node) if node.op_type == "MatMul" else _from_gemm(graph, node)
            if linear is not None:
                _absorb_bias(graph, linear)
                changed = True
    for node in list(graph):
        if is_op(node, "Linear", domain=HEADRACE_DOMAIN) and is_used(node):
            changed |= _absorb_activation(graph, node)
    return changed


def fuse_residual(graph: ir.Graph) -> bool:
    """Takes the Add of a tensor of the output's own shape into the Linear before it.

    Returns:
        Whether the graph changed.
    """
    changed = False
    order = {output: position for position, node in enumerate(graph) for output in node.outputs}
    for node in list(graph):
        if not is_op(node, "Add") or not is_used(node):
            continue
        # Of two Linears the later one takes the sum: the other operand then comes from before it.
        ages = [-1 if value is None else order.get(value, -1) for value in node.inputs]
        for index in (1, 0) if ages[0] < ages[1] else (0, 1):
            linear = producer(node.inputs[index], "Linear", domain=HEADRACE_DOMAIN)
            other = node.inputs[1 - index]
            if linear is None or other is None or input_at(linear, 3) is not None:
                continue
            output = linear.outputs[0]
            shape = dims(output)
            if single_use(output) is not node or shape is None or shape != dims(other):
                continue
            replacement = fused("Linear", [*_padded(linear)[:3], other], dict(linear.attributes))
            order[replace_node(graph, node.outputs[0], replacement)] = order[node.outputs[0]]
            changed = True
            break
    return changed


def _padded(linear: ir.Node) -> list[ir.Value | None]:
    return [*linear.inputs, *[None] * (4 - len(linear.inputs))]


def _is_weight(value: ir.Value | None) -> bool:
    if value is None or not is_constant(value) or value.const_value is None:
        return False
    return value.const_value.dtype == ir.DataType.FLOAT and len(value.const_value.shape) == 2


def _from_matmul(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    x, weight = node.inputs
    if not _is_weight(weight) or is_constant(x) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    linear = fused("Linear", [x, weight], {"activation": "none"})
    replace_node(graph, node.outputs[0], linear)
    return linear


def _from_gemm(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    x, weight, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
    if (
        not plain
        or weight is None
        or not _is_weight(weight)
        or is_constant(x)
        or node.outputs[0].dtype != ir.DataType.FLOAT
    ):
        return None
    assert weight.const_value is not None
    rows, columns = static_dims(weight.const_value)
    residual: ir.Value | None = None
    if bias is not None:
        if attribute(node, "beta", 1.0) != 1.0:
            return None
        width = rows if attribute(node, "transB", 0) else columns
        if is_constant(bias):
            bias = _as_bias(graph, bias, width, 2)
            if bias is None:
                return None
        elif dims(bias) is not None and dims(bias) == dims(node.outputs[0]):
            bias, residual = None, bias
        else:
            return None
    if attribute(node, "transB", 0):
        transposed = derived_tensor(ir.DataType.FLOAT, [columns, rows], [weight], lambda a: a.T)
        weight = add_constant(graph, f"{weight.name}_t", transposed)
    linear = fused("Linear", [x, weight, bias, residual], {"activation": "none"})
    replace_node(graph, node.outputs[0], linear)
    return linear


def _as_bias(graph: ir.Graph, value: ir.Value, width: int, rank: int | None) -> ir.Value | None:
    """`value` as a constant of shape [width], where adding it to [..., width] of that rank adds one row to all rows."""
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    shape = list(static_dims(tensor))
    if shape == [width]:
        return value
    flat = all(dim == 1 for dim in shape[:-1]) and (not shape or shape[-1] in (1, width))
    if not flat or (len(shape) > 1 and (rank is None or len(shape) > rank)):
        return None
    spread = derived_tensor(tensor.dtype, [width], [value], lambda a: a.reshape(-1).repeat(width // max(1, a.size)))
    return add_constant(graph, f"{value.name}_row", spread)


def _absorb_bias(graph: ir.Graph, linear: ir.Node) -> None:
    output = linear.outputs[0]
    add = single_use(output)
    if not is_op(add, "Add") or add is None or len(linear.inputs) > 2:
        return
    other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
    weight = linear.inputs[1]
    if other is None or not is_constant(other) or weight is None or weight.const_value is None:
        return
    rank = len(output.shape) if output.shape is not None else None
    bias = _as_bias(graph, other, static_dims(weight.const_value)[1], rank)
    if bias is not None:
        replace_node(graph, add.outputs[0], fused("Linear", [*linear.inputs, bias], dict(linear.attributes)))


def _absorb_activation(graph: ir.Graph, linear: ir.Node) -> bool:
    if attribute(linear, "activation") != "none" or input_at(linear, 3) is not None:
        return False
    found = activation_after(linear.outputs[0])
    if found is None or found.name == "clip":
        return False
    replace_node(graph, found.output, fused("Linear", list(linear.inputs), {"activation": found.name}))
    return True
