"""Moves Transposes and Reshapes past what does not mind them, so that they meet and cancel.

torch.nn.MultiheadAttention works on [sequence, batch, width] inside whatever it is given, flattens the rows around its
output projection, and takes query, key and value out of one projection through a rank 5 view. Each rule here is an
equality of its own; together they leave the projection, the heads and the merge in the form
`headrace.graph.passes.attention` looks for.
"""

from __future__ import annotations

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
    dims,
    fused,
    input_at,
    insert_before,
    ints,
    is_op,
    is_used,
    producer,
    remove_dead,
    replace_node,
    single_use,
    substitute,
)
from headrace.graph.passes.shapes import simplify_shapes, static_target

_ROUNDS_MAX = 6


def settle_layout(graph: ir.Graph) -> bool:
    """Applies the rules until none applies. Does nothing in graphs without a Softmax.

    Returns:
        Whether the graph changed.
    """
    if not any(is_op(node, "Softmax") for node in graph):
        return False
    ever = False
    for _ in range(_ROUNDS_MAX):
        changed = False
        for node in list(graph):
            if node.graph is graph and node.outputs and is_used(node):
                rule = _RULES.get((node.domain, node.op_type))
                changed |= rule is not None and any(step(graph, node) for step in rule)
        if not changed:
            break
        simplify_shapes(graph)
        remove_dead(graph)
        ever = True
    return ever


def _permuted(shape: tuple[Dim, ...], perm: list[int]) -> ir.Shape:
    return ir.Shape([shape[axis] for axis in perm])


def _made(graph: ir.Graph, before: ir.Value, node: ir.Node, shape: ir.Shape) -> ir.Value:
    node.outputs[0].type, node.outputs[0].shape = before.type, shape
    insert_before(graph, before, [node])
    return node.outputs[0]


def _row_transpose(value: ir.Value | None) -> tuple[ir.Value, list[int]] | None:
    """Source and permutation of a Transpose that makes `value`, for this use alone, and leaves the last axis last."""
    node = producer(value, "Transpose")
    if node is None or value is None or node.inputs[0] is None or single_use(value) is None:
        return None
    perm = list(attribute(node, "perm", ()))
    return (node.inputs[0], perm) if perm and perm[-1] == len(perm) - 1 else None


def _linear_of_transpose(graph: ir.Graph, linear: ir.Node) -> bool:
    """Linear works on rows: Linear(Transpose(x)) is Transpose(Linear(x)) where the last axis stays last."""
    found, output = _row_transpose(linear.inputs[0]), linear.outputs[0]
    shape = dims(output)
    if found is None or shape is None or input_at(linear, 3) is not None:
        return False
    source, perm = found
    inverse = [perm.index(axis) for axis in range(len(perm))]
    inner = fused("Linear", [source, *linear.inputs[1:]], dict(linear.attributes))
    value = _made(graph, output, inner, _permuted(shape, inverse))
    replace_node(graph, output, ir.node("Transpose", [value], {"perm": perm}))
    return True


def _split_of_transpose(graph: ir.Graph, split: ir.Node) -> bool:
    """The same for a Split of the last axis."""
    found = _row_transpose(split.inputs[0])
    if found is None or attribute(split, "axis", 0) not in (-1, len(found[1]) - 1):
        return False
    source, perm = found
    inverse = [perm.index(axis) for axis in range(len(perm))]
    shapes = [dims(output) for output in split.outputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return False
    inner = ir.node("Split", [source, *split.inputs[1:]], split.attributes, num_outputs=len(shapes))
    insert_before(graph, split.outputs[0], [inner])
    for output, value, shape in zip(split.outputs, inner.outputs, known, strict=True):
        value.type, value.shape = output.type, _permuted(shape, inverse)
        outer = ir.node("Transpose", [value], {"perm": perm})
        substitute(graph, output, _made(graph, split.outputs[0], outer, ir.Shape(shape)))
    return True


def _reshape_around_linear(graph: ir.Graph, reshape: ir.Node) -> bool:
    """Reshape(Linear(x)) that keeps the last axis is Linear(Reshape(x)): rows are only counted in another way."""
    linear = producer(reshape.inputs[0], "Linear", domain=HEADRACE_DOMAIN)
    if linear is None or single_use(linear.outputs[0]) is not reshape or input_at(linear, 3) is not None:
        return False
    flattened = producer(linear.inputs[0], "Reshape")
    start = dims(flattened.inputs[0]) if flattened is not None else None
    before, after = dims(linear.outputs[0]), dims(reshape.outputs[0])
    rows = dims(linear.inputs[0])
    if flattened is None or start is None or before is None or after is None or rows is None:
        return False
    if len(after) < 2 or after[-1] != before[-1]:
        return False
    wanted = (*after[:-1], rows[-1])
    target = static_target(start, wanted)
    if target is None:
        return False
    shape = add_constant(graph, f"{reshape.outputs[0].name}_rows", np.array(target, dtype=np.int64))
    inner = ir.node("Reshape", [flattened.inputs[0], shape])
    value = _made(graph, linear.outputs[0], inner, ir.Shape(wanted))
    replace_node(graph, reshape.outputs[0], fused("Linear", [value, *linear.inputs[1:]], dict(linear.attributes)))
    return True


def _merge_heads_batch_first(graph: ir.Graph, reshape: ir.Node) -> bool:
    """[B,H,S,D] -> [S,B,H,D] -> [S,B,H*D]: the heads are merged first, then the rows put in that order."""
    transpose = producer(reshape.inputs[0], "Transpose")
    split, merged = dims(reshape.inputs[0]), dims(reshape.outputs[0])
    if transpose is None or list(attribute(transpose, "perm", ())) != [2, 0, 1, 3] or split is None or merged is None:
        return False
    rows, batch, heads, depth = split
    if not isinstance(heads, int) or not isinstance(depth, int) or merged != (rows, batch, heads * depth):
        return False
    output = reshape.outputs[0]
    first = ir.node("Transpose", [transpose.inputs[0]], {"perm": [0, 2, 1, 3]})
    value = _made(graph, output, first, ir.Shape([batch, rows, heads, depth]))
    shape = add_constant(graph, f"{output.name}_merge", np.array([0, 0, heads * depth], dtype=np.int64))
    value = _made(graph, output, ir.node("Reshape", [value, shape]), ir.Shape([batch, rows, heads * depth]))
    replace_node(graph, output, ir.node("Transpose", [value], {"perm": [1, 0, 2]}))
    return True


def _select_of_three(graph: ir.Graph, gather: ir.Node) -> bool:
    """[S,B,3*E] seen as [3,S,B,E] and indexed along the 3 is a Split of the last axis."""
    packed = _packed_source(gather.inputs[0])
    if packed is None or gather.inputs[0] is None or attribute(gather, "axis", 0) != 0:
        return False
    users = [use.node for use in gather.inputs[0].uses()]
    picks = [ints(input_at(user, 1)) if is_op(user, "Gather") else None for user in users]
    shapes = [dims(user.outputs[0]) for user in users]
    whole = dims(packed)
    if sorted(pick[0] for pick in picks if pick and len(pick) == 1) != [0, 1, 2] or whole is None:
        return False
    if any(shape is None or len(shape) != 3 for shape in shapes) or not isinstance(whole[2], int):
        return False
    width = whole[2] // 3
    sizes = add_constant(graph, f"{packed.name}_thirds", np.array([width] * 3, dtype=np.int64))
    split = ir.node("Split", [packed, sizes], {"axis": 2}, num_outputs=3)
    first = min(users, key=list(graph).index)
    insert_before(graph, first.outputs[0], [split])
    for value in split.outputs:
        value.type, value.shape = packed.type, ir.Shape([*whole[:2], width])
    for user, pick in zip(users, picks, strict=True):
        assert pick is not None
        substitute(graph, user.outputs[0], split.outputs[pick[0]])
    return True


def _packed_source(value: ir.Value | None) -> ir.Value | None:
    """The [S,B,3*E] of which `value` is the view [3,S,B,E]."""
    squeeze = producer(value, "Squeeze")
    if squeeze is not None:
        if ints(input_at(squeeze, 1)) not in ([3], [-2]):
            return None
        transpose = producer(squeeze.inputs[0], "Transpose")
        unsqueeze = producer(transpose.inputs[0], "Unsqueeze") if transpose is not None else None
        if transpose is None or unsqueeze is None or list(attribute(transpose, "perm", ())) != [3, 1, 2, 0, 4]:
            return None
        view = unsqueeze.inputs[0] if ints(input_at(unsqueeze, 1)) == [0] else None
    else:
        transpose = producer(value, "Transpose")
        if transpose is None or list(attribute(transpose, "perm", ())) != [2, 0, 1, 3]:
            return None
        view = transpose.inputs[0]
    reshape = producer(view, "Reshape")
    source = reshape.inputs[0] if reshape is not None else None
    whole, split = dims(source), dims(view)
    if whole is None or split is None or len(whole) != 3 or not isinstance(whole[2], int):
        return None
    return source if split == (*whole[:2], 3, whole[2] // 3) and whole[2] % 3 == 0 else None


_RULES = {
    (HEADRACE_DOMAIN, "Linear"): (_linear_of_transpose,),
    ("", "Split"): (_split_of_transpose,),
    ("", "Reshape"): (_reshape_around_linear, _merge_heads_batch_first),
    ("", "Gather"): (_select_of_three,),
}
