"""Keeps what ops of old opsets meant where the ONNX project's version converter does not.

`spell_out` rewrites the ops that mean something else since, before the conversion, so that the old and the new rules
agree about what is left; `restore` puts back into the converted model what the converter dropped. Both follow the ops'
own pages (https://onnx.ai/onnx/operators) and were found by comparing models of one op with onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace.errors import InvalidModel
from headrace.graph._onnx_ir import ir
from headrace.graph.edit import attribute, input_at, producer, replace_node

# From it on, operands are broadcast as numpy does; before, "broadcast" and "axis" said which axes an operand has.
_NUMPY_BROADCAST = 7
# From it on, Clip and Pad take their numbers as inputs, of the data's dtype, and Resize says how it reads positions.
_NUMBERS_ARE_INPUTS = 11
_RESIZE_SHRINKS = 10  # before, Upsample only grew
_RESHAPE_TAKES_AN_INPUT = 5
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def spell_out(model: ir.Model, opset: int) -> None:
    """Rewrites the ops of a model of `opset` < 13 whose attributes later opsets read differently. Needs known ranks.

    Raises:
        InvalidModel: An operand is aligned to an axis of a value of unknown rank.
    """
    for graph in model.graphs():
        for node in list(graph):
            rule = _RULES.get(node.op_type) if node.domain == "" else None
            if rule is not None:
                rule(graph, node, opset)


def _flat_softmax(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """Until opset 13 these see two axes: all before `axis`, and the rest. The converter knows it of Softmax only."""
    source, rank, axis = node.inputs[0], _rank(node.inputs[0]), attribute(node, "axis", 1)
    if rank is not None and axis in (-1, rank - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", rank - 1)
        return
    if opset < _RESHAPE_TAKES_AN_INPUT:
        # Over one axis, whatever of length 1 is behind it, there is nothing to flatten.
        if source is None or source.shape is None or all(dim == 1 for dim in list(source.shape)[axis + 1 :]):
            return
        raise InvalidModel(f"{node.op_type} {node.name!r} over several axes: got opset {opset}, expected 5 or newer")
    flat = _before(graph, node, "Flatten", [source], "flat", axis=axis)
    shape = _before(graph, node, "Shape", [source], "shape")
    rows = _before(graph, node, node.op_type, [flat], "rows", axis=1)
    _become(graph, node, ir.node("Reshape", [rows, shape]))


def _norm_of_each_element(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """BatchNormalization with `spatial` 0 has a mean and a variance for each element of a row; it ended at opset 9."""
    if attribute(node, "spatial", 1) != 0 or len(node.inputs) != 5 or opset < _NUMPY_BROADCAST:
        return
    x, scale, bias, mean, variance = node.inputs
    epsilon = ir.node("Constant", [], {"value": ir.tensor(np.float32(attribute(node, "epsilon", 1e-5)))})
    epsilon.outputs[0].name = f"{node.outputs[0].name}_epsilon"
    graph.insert_before(node, epsilon)
    known = _before(graph, node, "Add", [variance, epsilon.outputs[0]], "variance")
    deviation = _before(graph, node, "Sqrt", [known], "deviation")
    centred = _before(graph, node, "Sub", [x, mean], "centred")
    normal = _before(graph, node, "Div", [centred, deviation], "normal")
    scaled = _before(graph, node, "Mul", [normal, scale], "scaled")
    _become(graph, node, ir.node("Add", [scaled, bias]))


def _bounds(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """From opset 6 to 10 a Clip without a bound has that of float32; later it has none."""
    if 6 <= opset < _NUMBERS_ARE_INPUTS:
        for name, default in (("min", -_FLOAT32_MAX), ("max", _FLOAT32_MAX)):
            if name not in node.attributes:
                node.attributes[name] = ir.AttrFloat32(name, default)


def _aligned(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """Gives the second operand the axes that numpy's rule needs behind those that `axis` aligns."""
    if opset >= _NUMPY_BROADCAST or "broadcast" not in node.attributes:
        return
    axis = attribute(node, "axis")
    rank, other = _rank(node.inputs[0]), _rank(node.inputs[1])
    del node.attributes["broadcast"]
    node.attributes.pop("axis", None)
    if axis is None:
        return
    if rank is None or other is None:
        raise InvalidModel(f"{node.op_type} {node.name!r} aligns at axis {axis}: got operands of unknown rank")
    _trail(graph, node, rank - axis % rank - other)


def _per_channel(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """A slope per channel: axis 1 until opset 7, the last axis by numpy's rule since."""
    rank, slope = _rank(node.inputs[0]), node.inputs[1]
    if opset >= _NUMPY_BROADCAST or slope is None or _rank(slope) != 1 or (slope.shape and slope.shape[0] == 1):
        return
    if rank is None:
        raise InvalidModel(f"{node.op_type} {node.name!r} has a slope per channel: got an input of unknown rank")
    _trail(graph, node, rank - 2)


def _trail(graph: ir.Graph, node: ir.Node, count: int) -> None:
    """Adds `count` axes of length 1 behind those of the second input."""
    rank = _rank(node.inputs[1])
    if count > 0 and rank is not None:
        axes = list(range(rank, rank + count))
        node.replace_input_with(1, _before(graph, node, "Unsqueeze", [node.inputs[1]], "aligned", axes=axes))


_RULES: dict[str, Callable[[ir.Graph, ir.Node, int], None]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _flat_softmax),
    "BatchNormalization": _norm_of_each_element,
    "Clip": _bounds,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"), _aligned),
    "PRelu": _per_channel,
}


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _before(
    graph: ir.Graph, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], suffix: str, **attributes: Any
) -> ir.Value:
    made = ir.node(op_type, inputs, attributes)
    made.outputs[0].name = f"{node.outputs[0].name}_{suffix}"
    graph.insert_before(node, made)
    return made.outputs[0]


def _become(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    old = node.outputs[0]
    new.outputs[0].name = f"{old.name}_new"
    replace_node(graph, old, new)
    graph.remove(node, safe=True)


def dtypes_of(model: ir.Model) -> dict[str, ir.DataType]:
    """The dtype of every value that has a name, for `restore`."""
    return {
        value.name: value.dtype
        for graph in model.graphs()
        for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs))
        if value.name and value.dtype is not None
    }


def restore(converted: ir.Model, opset: int, dtypes: dict[str, ir.DataType]) -> None:
    """Puts back into a model, converted from `opset`, what the converter lost. `dtypes` are those before it."""
    if opset >= _NUMBERS_ARE_INPUTS:
        return
    for graph in converted.graphs():
        for node in list(graph):
            if node.op_type == "Resize":
                _resize(graph, node, only_grows=opset < _RESIZE_SHRINKS)
            elif node.op_type in ("Clip", "Pad"):
                _as_the_data(node, dtypes)


def _resize(graph: ir.Graph, node: ir.Node, *, only_grows: bool) -> None:
    """There was one way to resize, also for what was an Upsample. The default is another since.

    The nearest position was below where an axis grows, and above where it shrinks. No `nearest_mode` is both, so where
    it is not known that all axes do the same, the ones that grow are resized first.
    """
    _say(node, "coordinate_transformation_mode", "asymmetric")
    if attribute(node, "mode", "nearest") != "nearest":
        return
    _say(node, "nearest_mode", "floor")
    scales = input_at(node, 2)
    known = _content(scales)
    if only_grows or (known is not None and (known >= 1).all()):
        return
    if known is None or (known > 1).any():
        one = ir.node("Constant", [], {"value": ir.tensor(np.ones(1, dtype=np.float32))})
        one.outputs[0].name = f"{node.outputs[0].name}_one"
        graph.insert_before(node, one)
        up = _before(graph, node, "Max", [scales, one.outputs[0]], "up")
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        grown = _before(graph, node, "Resize", [node.inputs[0], node.inputs[1], up], "grown", **attributes)
        node.replace_input_with(0, grown)
        node.replace_input_with(2, _before(graph, node, "Min", [scales, one.outputs[0]], "down"))
    _say(node, "nearest_mode", "ceil")


def _say(node: ir.Node, name: str, value: str) -> None:
    node.attributes[name] = ir.AttrString(name, value)


def _content(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The elements of an initializer or of what a Constant gives; None where they are not known beforehand."""
    made = producer(value, "Constant")
    tensor = attribute(made, "value") if made is not None else None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy())


def _as_the_data(node: ir.Node, dtypes: dict[str, ir.DataType]) -> None:
    """The converter makes float32 of every bound and fill value; they must be what the data is."""
    source = node.inputs[0]
    dtype = dtypes.get(source.name or "") if source is not None else None
    for index in (1, 2) if node.op_type == "Clip" else (2,):
        constant = producer(input_at(node, index), "Constant")
        tensor = attribute(constant, "value") if constant is not None else None
        if constant is None or tensor is None or dtype in (None, tensor.dtype):
            continue
        with np.errstate(over="ignore"):  # the largest float32 is infinite as float16
            constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy().astype(dtype.numpy())))
        constant.outputs[0].type = ir.TensorType(dtype)
