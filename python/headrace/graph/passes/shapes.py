"""Removes what a graph computes only to know its own shapes: Reshape targets, no-op Expands, index grids."""

from __future__ import annotations

import numpy as np

from headrace.graph import dims as sym
from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import (
    add_constant,
    attribute,
    constant,
    derived_tensor,
    input_at,
    ints,
    is_constant,
    is_op,
    is_used,
    producer,
    replace_node,
    static_dims,
    substitute,
)
from headrace.graph.passes.analysis import analyse
from headrace.graph.passes.facts import Dims, Fact, Facts
from headrace.graph.passes.rules import POINTWISE


def simplify_shapes(graph: ir.Graph) -> bool:
    """Replaces shape computations by constants and drops nodes that only restate a shape. Names unknown dims.

    Returns:
        Whether the graph changed.
    """
    facts = analyse(graph)
    changed = False
    for node in list(graph):
        if node.domain != "" or not node.outputs or not is_used(node):
            continue
        changed |= _known_content(graph, node, facts) or _RULES.get(node.op_type, _keep)(graph, node, facts)
    return changed


def _keep(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    return False


def _known_content(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """A small integer tensor all of whose elements are known is a constant."""
    output = node.outputs[0]
    fact = facts.of(output)
    if fact.content is None or fact.shape is None or len(fact.shape) > 1 or is_constant(output):
        return False
    numbers = [dim for dim in fact.content if isinstance(dim, int)]
    if len(numbers) != len(fact.content) or output.dtype not in (
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.BOOL,
    ):
        return False
    if output.is_graph_output():
        return False
    array = np.array(numbers, dtype=output.dtype.numpy()).reshape([len(numbers)] if len(fact.shape) else [])
    substitute(graph, output, add_constant(graph, f"{output.name}_known", array))
    return True


def _reshape(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    before, after = facts.shape(source), facts.shape(output)
    if source is None or before is None or after is None:
        return False
    if before == after:
        substitute(graph, output, source)
        return True
    if _split_before_transpose(graph, node, facts):
        return True
    guesses = _guesses(node, facts)
    inner = producer(source, "Reshape")
    if inner is not None and inner.inputs[0] is not None:
        # Row-major order is kept by both: the outer one alone gives the same.
        start = facts.shape(inner.inputs[0])
        target = None if start is None else static_target(start, after, guesses or _guesses(inner, facts))
        if target is not None:
            node.replace_input_with(0, inner.inputs[0])
            return _set_target(graph, node, target)
    if is_constant(input_at(node, 1)):
        return False
    target = static_target(before, after, guesses)
    return target is not None and _set_target(graph, node, target)


def _guesses(reshape: ir.Node, facts: Facts) -> bool:
    """Whether the target of `reshape` has a -1, which nothing can be put for where the tensor has no elements."""
    return -1 in (facts.of(reshape.inputs[1]).content or ())


def _set_target(graph: ir.Graph, node: ir.Node, target: list[int]) -> bool:
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}_shape", np.array(target, dtype=np.int64)))
    node.attributes.pop("allowzero", None)  # 0 by default, and unknown before opset 14
    return True


def static_target(before: Dims, after: Dims, guesses: bool = True) -> list[int] | None:
    """`after` as a constant Reshape target (0 copies the input's dim, one -1 is inferred), or None.

    A -1 cannot be inferred beside a copied dim that is 0 in a Request, an empty batch say. Without `guesses` there is
    no target of both.
    """
    target: list[int] = []
    for axis, dim in enumerate(after):
        if isinstance(dim, int):
            if dim <= 0:
                return None
            target.append(dim)
        elif axis < len(before) and before[axis] == dim:
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (not guesses and -1 in target and 0 in target):
        return None
    return target


def _split_before_transpose(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """A Reshape that only splits axes of what a Transpose gave may as well split them before it.

    So [..., m, n] -> [prod, m, n] -> [prod, n, m] -> [..., n, m] is one Transpose of the last two axes.
    """
    transpose = producer(node.inputs[0], "Transpose")
    source = transpose.inputs[0] if transpose is not None else None
    start, middle, end = facts.shape(source), facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if transpose is None or source is None or start is None or middle is None or end is None:
        return False
    perm = list(attribute(transpose, "perm") or range(len(start))[::-1])
    groups = _split_groups(middle, end)
    if groups is None or all(len(group) == 1 for group in groups):
        return False
    by_axis = {axis: group for axis, group in zip(perm, groups, strict=True)}
    split = tuple(end[position] for axis in range(len(start)) for position in by_axis[axis])
    places = [position for axis in range(len(start)) for position in by_axis[axis]]
    inner = producer(source, "Reshape")
    origin = inner.inputs[0] if inner is not None and facts.shape(inner.inputs[0]) is not None else source
    target = static_target(facts.shape(origin) or (), split)
    if target is None:
        origin, target = source, static_target(start, split)
    if target is None:
        return False
    shape = add_constant(graph, f"{node.outputs[0].name}_split", np.array(target, dtype=np.int64))
    reshape = ir.node("Reshape", [origin, shape])
    reshape.outputs[0].type, reshape.outputs[0].shape = node.outputs[0].type, ir.Shape(_annotation(split))
    graph.insert_before(node, reshape)
    facts.known[reshape.outputs[0]] = Fact(shape=split)
    # The output's axis p comes from where p stands in the split shape.
    merged = [places.index(position) for position in range(len(end))]
    replace_node(graph, node.outputs[0], ir.node("Transpose", [reshape.outputs[0]], {"perm": merged}))
    return True


def _split_groups(middle: Dims, end: Dims) -> list[list[int]] | None:
    """For each axis of `middle` the run of axes of `end` whose product it is; None where `end` is not such a split."""
    groups, at = [], 0
    for dim in middle:
        group: list[int] = []
        product: Dim = 1
        while product != dim:
            if at == len(end):
                return None
            product = sym.mul(product, end[at])
            group.append(at)
            at += 1
        groups.append(group)
    return groups if at == len(end) else None


def _expand(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    before = facts.shape(node.inputs[0])
    if node.inputs[0] is None or before is None or before != facts.shape(node.outputs[0]):
        return False
    substitute(graph, node.outputs[0], node.inputs[0])
    return True


def _slice(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    starts = ints(input_at(node, 1))
    steps_value = input_at(node, 4)
    steps = ints(steps_value) if steps_value is not None else [1]
    if node.inputs[0] is None or before is None or before != after or starts is None or steps is None:
        return False
    if any(start != 0 for start in starts) or any(step != 1 for step in steps):
        return False
    substitute(graph, node.outputs[0], node.inputs[0])
    return True


def _gather(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """A table looked up at a slice of constant positions is a slice of the constant look-up."""
    table, index = node.inputs
    cut = producer(index, "Slice")
    if table is None or cut is None or not is_constant(table) or attribute(node, "axis", 0) != 0:
        return False
    positions = constant(cut.inputs[0])
    axes = ints(input_at(cut, 3))
    tensor = table.const_value
    if positions is None or tensor is None or axes is None or positions.ndim == 0 or len(cut.inputs) < 4:
        return False
    rows, *rest = static_dims(tensor)
    if positions.size > rows or positions.min() < -rows or positions.max() >= rows:
        return False
    shape = [*positions.shape, *rest]
    looked_up = derived_tensor(tensor.dtype, shape, [table], lambda array: array[positions])
    value = add_constant(graph, f"{node.outputs[0].name}_table", looked_up)
    axes_value = add_constant(
        graph, f"{node.outputs[0].name}_axes", np.array([axis % positions.ndim for axis in axes], dtype=np.int64)
    )
    inputs = [value, *cut.inputs[1:3], axes_value, *cut.inputs[4:]]
    replace_node(graph, node.outputs[0], ir.node("Slice", inputs))
    return True


def _gather_nd(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """Picking ``data[i0, i1, ...]`` at every index in order is `data` itself with axes of length 1 added."""
    data, index = node.inputs
    grid, out, shape = facts.of(index).grid, facts.shape(node.outputs[0]), facts.shape(data)
    if data is None or grid is None or shape is None or len(grid) != len(shape) or attribute(node, "batch_dims", 0):
        return False
    index_shape = facts.shape(index)
    if index_shape is None or any(axis is None for axis in grid):
        return False
    axes = [axis for axis in grid if axis is not None]
    out = index_shape[:-1]
    if axes != sorted(set(axes)) or [out[axis] for axis in axes] != list(shape):
        return False
    extra = [axis for axis in range(len(out)) if axis not in axes]
    if any(out[axis] != 1 for axis in extra):
        return False
    axes_value = add_constant(graph, f"{node.outputs[0].name}_axes", np.array(extra, dtype=np.int64))
    replace_node(graph, node.outputs[0], ir.node("Unsqueeze", [data, axes_value]))
    return True


def _transpose(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    source = node.inputs[0]
    shape = facts.shape(source)
    perm = list(attribute(node, "perm") or (range(len(shape))[::-1] if shape is not None else ()))
    if source is None or not perm:
        return False
    if perm == sorted(perm):
        substitute(graph, node.outputs[0], source)
        return True
    inner = producer(source, "Transpose")
    inner_perm = attribute(inner, "perm") if inner is not None else None
    if inner is None or not inner_perm:
        return False
    merged = [inner_perm[axis] for axis in perm]
    if merged == sorted(merged) and inner.inputs[0] is not None:
        substitute(graph, node.outputs[0], inner.inputs[0])
        return True
    replace_node(graph, node.outputs[0], ir.node("Transpose", [inner.inputs[0]], {"perm": merged}))
    return True


def _and(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """And with True everywhere gives the other operand."""
    for this, other in ((0, 1), (1, 0)):
        kept = node.inputs[other]
        if facts.of(node.inputs[this]).uniform == 1.0 and kept is not None:
            shape = facts.shape(kept)
            if shape is not None and shape == facts.shape(node.outputs[0]):
                substitute(graph, node.outputs[0], kept)
                return True
    return False


_RULES = {
    "And": _and,
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Transpose": _transpose,
}


def peel_broadcasts(graph: ir.Graph) -> bool:
    """Lets pointwise ops read the small operand of an Expand where they broadcast it themselves. Run it once.

    A mask that was expanded to [batch, 1, sequence, sequence] so becomes [batch, 1, 1, sequence] again.

    Returns:
        Whether the graph changed.
    """
    facts = analyse(graph)
    changed = False
    for node in list(graph):
        if is_op(node, "Gather"):
            changed |= _uniform_gather(graph, node, facts)
        elif node.domain == "" and node.op_type in POINTWISE:
            changed |= _peel(graph, node, facts)
    return changed


def _uniform_gather(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    """A table looked up everywhere at one index is a broadcast of one row."""
    table, index = node.inputs
    pick = facts.of(index).uniform
    if table is None or pick is None or not is_constant(table) or attribute(node, "axis", 0) != 0 or is_constant(index):
        return False
    tensor = table.const_value
    if tensor is None:
        return False
    rows, *shape = static_dims(tensor)
    if not -rows <= pick < rows:
        return False
    row = derived_tensor(tensor.dtype, shape, [table], lambda array: array[int(pick)])
    value = add_constant(graph, f"{node.outputs[0].name}_row", ir.tensor(row.numpy()))
    facts.of(node.outputs[0]).base = value
    return True


def _peel(graph: ir.Graph, node: ir.Node, facts: Facts) -> bool:
    bases = [facts.of(value).base if value is not None else None for value in node.inputs]
    if all(base is None for base in bases):
        return False
    small = [base if base is not None else value for base, value in zip(bases, node.inputs, strict=True)]
    shapes: list[tuple[Dim, ...]] = []
    for value in small:
        shape = facts.shape(value)
        if shape is None:
            return False
        shapes.append(shape)
    output, reached = node.outputs[0], sym.broadcast(shapes)
    if reached is None:
        return False
    if reached == facts.shape(output):
        for index, value in enumerate(small):
            node.replace_input_with(index, value)
        return True
    twin = ir.node(node.op_type, small, node.attributes)
    twin.outputs[0].type, twin.outputs[0].shape = output.type, ir.Shape(_annotation(reached))
    graph.insert_before(node, twin)
    facts.known[twin.outputs[0]] = Fact(shape=reached)
    facts.of(output).base = twin.outputs[0]
    return True


def _annotation(shape: Dims) -> list[int | str | None]:
    return [None if isinstance(dim, str) and dim.startswith("?") else dim for dim in shape]
