"""The rules of shape analysis, one per op: the fact of the node's first output, or None for "cannot tell"."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headrace.graph import dims as sym
from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import attribute, input_at, ints
from headrace.graph.passes.facts import Dims, Fact, Facts


def _shape(node: ir.Node, facts: Facts) -> Fact | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
    part = shape[slice(*slice(start, end).indices(len(shape)))]
    return Fact(shape=(len(part),), content=part)


def _size(node: ir.Node, facts: Facts) -> Fact | None:
    shape = facts.shape(node.inputs[0])
    return None if shape is None else Fact(shape=(), content=(sym.product(shape),))


def _same(node: ir.Node, facts: Facts) -> Fact | None:
    fact = facts.of(node.inputs[0])
    return Fact(fact.shape, fact.content, fact.uniform, fact.index_axis, fact.grid, node.inputs[0])


def _cast(node: ir.Node, facts: Facts) -> Fact | None:
    fact = facts.of(node.inputs[0])
    to, source = ir.DataType(attribute(node, "to")), node.inputs[0]
    whole = {ir.DataType.INT64, ir.DataType.INT32}
    if source is not None and source.dtype in whole and to in whole:
        return Fact(fact.shape, fact.content, fact.uniform, fact.index_axis)
    return Fact(shape=fact.shape)


def _unsqueezed(fact: Fact, axes: list[int]) -> Fact | None:
    if fact.shape is None:
        return None
    rank = len(fact.shape) + len(axes)
    new = {axis % rank for axis in axes}
    old_axes = [axis for axis in range(rank) if axis not in new]
    shape: list[Dim] = [1] * rank
    for axis, dim in zip(old_axes, fact.shape, strict=True):
        shape[axis] = dim
    index = None if fact.index_axis is None else old_axes[fact.index_axis]
    return Fact(tuple(shape), fact.content if rank <= 1 else None, fact.uniform, index)


def _unsqueeze(node: ir.Node, facts: Facts) -> Fact | None:
    axes = ints(input_at(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    return None if axes is None else _unsqueezed(facts.of(node.inputs[0]), list(axes))


def _squeeze(node: ir.Node, facts: Facts) -> Fact | None:
    fact = facts.of(node.inputs[0])
    if fact.shape is None:
        return None
    axes = ints(input_at(node, 1)) if input_at(node, 1) is not None else attribute(node, "axes")
    if axes is None:
        if input_at(node, 1) is not None or not all(isinstance(dim, int) for dim in fact.shape):
            return None
        axes = [axis for axis, dim in enumerate(fact.shape) if dim == 1]
    gone = {axis % len(fact.shape) for axis in axes}
    kept = [axis for axis in range(len(fact.shape)) if axis not in gone]
    index = kept.index(fact.index_axis) if fact.index_axis in kept else None
    return Fact(tuple(fact.shape[axis] for axis in kept), fact.content, fact.uniform, index)


def _concat(node: ir.Node, facts: Facts) -> Fact | None:
    parts = [facts.of(value) for value in node.inputs]
    shapes = [part.shape for part in parts if part.shape is not None]
    if len(shapes) != len(parts):
        return None
    axis = attribute(node, "axis") % len(shapes[0])
    length: Dim = 0
    for shape in shapes:
        length = sym.add(length, shape[axis])
    fact = Fact(shape=(*shapes[0][:axis], length, *shapes[0][axis + 1 :]))
    if len(shapes[0]) == 1 and all(part.content is not None for part in parts):
        fact.content = tuple(dim for part in parts for dim in part.content or ())
    elif axis == len(shapes[0]) - 1 and all(shape[axis] == 1 for shape in shapes):
        fact.grid = tuple(part.index_axis for part in parts)
    return fact


def _gather(node: ir.Node, facts: Facts) -> Fact | None:
    data, index = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    if data.shape is None or index.shape is None:
        return None
    axis = attribute(node, "axis", 0) % len(data.shape)
    fact = Fact(shape=(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]), uniform=data.uniform)
    if data.content is not None and index.content is not None and len(data.shape) == 1:
        picks = [pick for pick in index.content if isinstance(pick, int)]
        if len(picks) == len(index.content) and all(-len(data.content) <= pick < len(data.content) for pick in picks):
            fact.content = tuple(data.content[pick] for pick in picks)
    return fact


def _gather_elements(node: ir.Node, facts: Facts) -> Fact | None:
    return Fact(shape=facts.shape(node.inputs[1]), uniform=facts.of(node.inputs[0]).uniform)


def _slice(node: ir.Node, facts: Facts) -> Fact | None:
    data = facts.of(node.inputs[0])
    if data.shape is None:
        return None
    starts, ends = facts.of(input_at(node, 1)).content, facts.of(input_at(node, 2)).content
    axes_value, steps_value = input_at(node, 3), input_at(node, 4)
    axes = ints(axes_value) if axes_value is not None else list(range(len(starts or ())))
    steps = ints(steps_value) if steps_value is not None else [1] * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        return Fact(shape=tuple(f"?{node.outputs[0].name}:{axis}" for axis in range(len(data.shape))))
    shape, content, index = list(data.shape), data.content, data.index_axis
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        dim = shape[axis]
        if content is not None:
            whole = isinstance(start, int) and isinstance(end, int)
            content = content[slice(int(start), _int_end(int(end), step), step)] if whole else None
        if axis == index and (start != 0 or step != 1):
            index = None
        shape[axis] = _slice_length(start, end, step, dim, f"?{node.outputs[0].name}:{axis}")
    return Fact(tuple(shape), content, data.uniform, index)


def _int_end(end: int, step: int) -> int | None:
    # ONNX says "to the very end, backwards" with INT64_MIN, where Python says None.
    return None if step < 0 and end < -(1 << 31) else end


def _slice_length(start: Dim, end: Dim, step: int, dim: Dim, unknown: str) -> Dim:
    if isinstance(start, int) and isinstance(end, int) and isinstance(dim, int):
        return len(range(*slice(start, _int_end(end, step), step).indices(dim)))
    if step == 1 and start == 0:
        if end == dim or (isinstance(end, int) and end >= (1 << 31) - 1):
            return dim
        if isinstance(end, int) and end < 0 and isinstance(dim, str):
            return unknown
    return unknown


def _range(node: ir.Node, facts: Facts) -> Fact | None:
    start, limit, delta = (facts.of(value).content for value in node.inputs)
    if start == (0,) and delta == (1,) and limit is not None:
        return Fact(shape=(limit[0],), index_axis=0)
    return None


def _expand(node: ir.Node, facts: Facts) -> Fact | None:
    data, target = facts.of(node.inputs[0]), facts.of(node.inputs[1]).content
    if data.shape is None or target is None:
        return None
    shape = sym.broadcast([data.shape, target])
    if shape is None:
        return None
    fact = Fact(shape, uniform=data.uniform, base=data.base or node.inputs[0])
    if data.index_axis is not None:
        axis = data.index_axis + len(shape) - len(data.shape)
        if shape[axis] == data.shape[data.index_axis]:
            fact.index_axis = axis
    return fact


def _constant_of_shape(node: ir.Node, facts: Facts) -> Fact | None:
    content = facts.of(node.inputs[0]).content
    tensor = attribute(node, "value")
    uniform = 0.0 if tensor is None else float(np.asarray(tensor.numpy()).reshape(-1)[0])
    return None if content is None else Fact(shape=content, uniform=uniform)


def _reshape(node: ir.Node, facts: Facts) -> Fact | None:
    data, target = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    if target.content is None:
        count = target.shape[0] if target.shape else None
        if not isinstance(count, int):
            return None
        return Fact(shape=tuple(f"?{node.outputs[0].name}:{axis}" for axis in range(count)))
    shape, keep_zero = list(target.content), attribute(node, "allowzero", 0)
    for axis, dim in enumerate(shape):
        if dim == 0 and not keep_zero:
            if data.shape is None or axis >= len(data.shape):
                return None
            shape[axis] = data.shape[axis]
    if shape.count(-1) == 1:
        hole = shape.index(-1)
        rest = shape[:hole] + shape[hole + 1 :]
        filled = None if data.shape is None else sym.divide_products(data.shape, rest)
        shape[hole] = f"?{node.outputs[0].name}:{hole}" if filled is None else filled
    content = data.content if len(shape) <= 1 else None
    return Fact(shape=tuple(shape), content=content, uniform=data.uniform)


def _transpose(node: ir.Node, facts: Facts) -> Fact | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    perm = attribute(node, "perm") or tuple(reversed(range(len(shape))))
    return Fact(shape=tuple(shape[axis] for axis in perm), uniform=facts.of(node.inputs[0]).uniform)


def _matmul(node: ir.Node, facts: Facts) -> Fact | None:
    left, right = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if left is None or right is None or not left or not right:
        return None
    head = sym.broadcast([left[:-2], right[:-2]])
    if head is None:
        return None
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    return Fact(shape=(*head, *rows, *columns))


def _window(node: ir.Node, facts: Facts) -> Fact | None:
    """Conv and pools over [N, C, spatial...]."""
    shape = facts.shape(node.inputs[0])
    explicit = attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not attribute(node, "ceil_mode", 0)
    if shape is None or not explicit:
        return None
    spatial = len(shape) - 2
    kernel, channels = attribute(node, "kernel_shape"), shape[1]
    if node.op_type == "Conv":
        weight = facts.shape(node.inputs[1])
        if weight is None:
            return None
        kernel, channels = weight[2:], weight[0]
    strides = attribute(node, "strides") or [1] * spatial
    dilations = attribute(node, "dilations") or [1] * spatial
    pads = attribute(node, "pads") or [0] * (2 * spatial)
    out = []
    for axis in range(spatial):
        if not isinstance(kernel[axis], int):
            return None
        reach = dilations[axis] * (kernel[axis] - 1) + 1 - pads[axis] - pads[axis + spatial]
        out.append(sym.add(sym.floor_divide(sym.sub(shape[2 + axis], reach), strides[axis]), 1))
    return Fact(shape=(shape[0], channels, *out))


def _global_pool(node: ir.Node, facts: Facts) -> Fact | None:
    shape = facts.shape(node.inputs[0])
    return None if shape is None else Fact(shape=(*shape[:2], *[1] * (len(shape) - 2)))


def _reduce(node: ir.Node, facts: Facts) -> Fact | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    axes_value = input_at(node, 1)
    axes = ints(axes_value) if axes_value is not None else attribute(node, "axes")
    if axes is None:
        if axes_value is not None:
            return None
        axes = () if attribute(node, "noop_with_empty_axes", 0) else tuple(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    if attribute(node, "keepdims", 1):
        return Fact(shape=tuple(1 if axis in gone else dim for axis, dim in enumerate(shape)))
    return Fact(shape=tuple(dim for axis, dim in enumerate(shape) if axis not in gone))


_INTEGER_RULES: dict[str, Callable[[Dim, Dim], Dim]] = {"Add": sym.add, "Sub": sym.sub, "Mul": sym.mul}


def _elementwise(node: ir.Node, facts: Facts) -> Fact | None:
    inputs = [facts.of(value) for value in node.inputs if value is not None]
    shapes = [fact.shape for fact in inputs if fact.shape is not None]
    if not inputs or len(shapes) != len(inputs):
        return None
    shape = sym.broadcast(shapes)
    fact = Fact(shape=shape)
    contents = [part.content for part in inputs if part.content is not None]
    if len(inputs) == len(contents) == 2:
        left, right = contents
        size = max(len(left), len(right))
        if size and {len(left), len(right)} <= {1, size}:
            pairs = [(left[i % len(left)], right[i % len(right)]) for i in range(size)]
            fact.content = _combine(node.op_type, pairs)
    fact.uniform = _uniform(node.op_type, inputs)
    if node.op_type == "And" and len(inputs) == 2:
        for this, other in ((0, 1), (1, 0)):
            if inputs[this].uniform == 1.0:
                fact.base = inputs[other].base or node.inputs[other]
    return fact


def _quotient(a: Dim, b: Dim) -> Dim | None:
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)  # ONNX cuts towards zero
    return sym.divide_products([a], [b])


def _combine(op_type: str, pairs: list[tuple[Dim, Dim]]) -> Dims | None:
    if op_type in _INTEGER_RULES:
        return tuple(_INTEGER_RULES[op_type](a, b) for a, b in pairs)
    if op_type == "Div":
        quotients = [_quotient(a, b) for a, b in pairs]
        return None if None in quotients else tuple(q for q in quotients if q is not None)
    if op_type in ("Max", "Min") and all(isinstance(a, int) and isinstance(b, int) for a, b in pairs):
        pick = max if op_type == "Max" else min
        return tuple(pick(int(a), int(b)) for a, b in pairs)
    return None


def _uniform(op_type: str, inputs: list[Fact]) -> float | None:
    if len(inputs) == 2:
        left, right = inputs
        if op_type == "And" and left.uniform == 1.0 and right.uniform == 1.0:
            return 1.0
        # An index is never negative.
        if op_type == "GreaterOrEqual" and left.index_axis is not None and right.uniform is not None:
            return 1.0 if right.uniform <= 0 else None
        if op_type == "LessOrEqual" and right.index_axis is not None and left.uniform is not None:
            return 1.0 if left.uniform <= 0 else None
    return None


_ELEMENTWISE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "And",
        "Or",
        "Xor",
        "Not",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Where",
        "Abs",
        "Neg",
        "Sqrt",
        "Exp",
        "Log",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Relu",
        "Gelu",
        "Softmax",
        "LogSoftmax",
        "IsNaN",
        "IsInf",
        "Reciprocal",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Sin",
        "Cos",
        "Softplus",
        "Clip",
        "Dropout",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Mish",
        "Swish",
    ]
)
# Of these, the ones whose elements depend only on the elements beside them (Softmax looks along an axis).
POINTWISE = _ELEMENTWISE - {"Softmax", "LogSoftmax", "Dropout", "Clip"}

_SHAPE_KEEPING_ML = frozenset({"Scaler", "Imputer", "Normalizer", "Binarizer", "LabelEncoder"})


def _like_input(node: ir.Node, facts: Facts) -> Fact | None:
    return Fact(shape=facts.shape(node.inputs[0]))


_RULES: dict[str, Callable[[ir.Node, Facts], Fact | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Slice": _slice,
    "Range": _range,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "MatMul": _matmul,
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceL1"), _reduce
    ),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _window),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "BatchNormalization"), _like_input),
}


def rule_for(node: ir.Node) -> Callable[[ir.Node, Facts], Fact | None] | None:
    """The rule of `node`, if there is one."""
    if node.domain == "ai.onnx.ml":
        return _like_input if node.op_type in _SHAPE_KEEPING_ML else None
    if node.domain != "":
        return None
    return _elementwise if node.op_type in _ELEMENTWISE else _RULES.get(node.op_type)
