"""Passes that make a graph smaller without knowing what it is for: constants folded, copies and repeats removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    add_constant,
    attribute,
    derived_tensor,
    input_at,
    ints,
    is_constant,
    static_dims,
    substitute,
)

# A folded constant may have this many bytes, or as many as the constants it came from.
FOLD_BYTES_MAX = 1 << 20

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Their outputs may be far larger than their inputs, so they are folded only where the size is known beforehand.
_GROWING = frozenset(
    {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike", "Upsample", "Gather"}
)

Array = np.ndarray[Any, Any]


def lift_constants(graph: ir.Graph) -> bool:
    """Turns Constant nodes into initializers."""
    changed = False
    for node in list(graph):
        if node.domain != "" or node.op_type != "Constant" or len(node.attributes) != 1:
            continue
        (attr,) = node.attributes.values()
        tensor = _constant_tensor(attr)
        if tensor is None or attr.is_ref():
            continue
        output = node.outputs[0]
        substitute(graph, output, _as_output(graph, output, tensor))
        graph.remove(node, safe=True)
        changed = True
    return changed


def _constant_tensor(attr: ir.Attr) -> ir.TensorProtocol | None:
    if attr.name == "value":
        return attr.as_tensor()
    if attr.name in ("value_int", "value_ints"):
        return ir.tensor(np.array(attr.value, dtype=np.int64))
    if attr.name in ("value_float", "value_floats"):
        return ir.tensor(np.array(attr.value, dtype=np.float32))
    if attr.name in ("value_string", "value_strings"):
        many = attr.name == "value_strings"
        values = [text.encode() for text in (attr.value if many else [attr.value])]
        return ir.StringTensor(values, shape=ir.Shape([len(values)] if many else []))
    return None


def _as_output(graph: ir.Graph, output: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    return add_constant(graph, f"{output.name}_const", tensor)


def fold_constants(graph: ir.Graph, opsets: dict[str, int]) -> bool:
    """Computes nodes whose inputs are all constant, where the result stays small.

    Layout changes of large constants (Transpose, Reshape, ...) are not computed here but when the weights are read.
    """
    changed = False
    for node in list(graph):
        if node.domain != "" or not node.inputs or node.op_type in _RANDOM or len(node.outputs) != 1:
            continue
        if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
            continue
        if not all(value is None or is_constant(value) for value in node.inputs) or node.outputs[0].is_graph_output():
            continue
        tensor = _folded(node, opsets)
        if tensor is None:
            continue
        substitute(graph, node.outputs[0], _as_output(graph, node.outputs[0], tensor))
        graph.remove(node, safe=True)
        changed = True
    return changed


def _folded(node: ir.Node, opsets: dict[str, int]) -> ir.TensorProtocol | None:
    tensors = [value.const_value for value in node.inputs if value is not None]
    bytes_in = sum(_bytes(tensor) for tensor in tensors if tensor is not None)
    if bytes_in > FOLD_BYTES_MAX:
        return _relayout(node)
    limit = max(FOLD_BYTES_MAX, bytes_in)
    if node.op_type in _GROWING:
        shape, dtype = node.outputs[0].shape, node.outputs[0].dtype
        if shape is None or dtype is None or not shape.is_static():
            return None
        if int(np.prod(shape.numpy(), dtype=np.float64)) * max(1, dtype.itemsize) > limit:
            return None
    array = _evaluate(node, opsets)
    if array is None or array.nbytes > limit:
        return None
    if array.dtype.kind in "OUS":
        return ir.StringTensor([str(text).encode() for text in array.reshape(-1)], shape=ir.Shape(array.shape))
    dtype = node.outputs[0].dtype
    if dtype is not None and array.dtype != dtype.numpy():
        return None
    return ir.tensor(np.ascontiguousarray(array), dtype=dtype)


def _bytes(tensor: ir.TensorProtocol) -> int:
    return tensor.size * 16 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _evaluate(node: ir.Node, opsets: dict[str, int]) -> Array | None:
    arrays = [
        None if value is None or value.const_value is None else value.const_value.numpy() for value in node.inputs
    ]
    quick = _NUMPY.get(node.op_type)
    if quick is not None and len(arrays) == 2 and arrays[0] is not None and arrays[1] is not None:
        with np.errstate(all="ignore"):
            return np.asarray(quick(arrays[0], arrays[1]))
    return evaluate(node, arrays, opsets)


_NUMPY: dict[str, Callable[[Array, Array], Array]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def evaluate(node: ir.Node, arrays: list[Array | None], opsets: dict[str, int]) -> Array | None:
    """Runs one node in the ONNX project's reference evaluator; None where that lacks the op."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto = ir.serde.serialize_node(node)
    names = [f"in{index}" if array is not None else "" for index, array in enumerate(arrays)]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.append("out")
    inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names if name]
    graph = onnx.helper.make_graph([proto], "fold", inputs, [onnx.helper.make_value_info("out", onnx.TypeProto())])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    try:
        with np.errstate(all="ignore"):
            result = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)[0]
    except Exception:
        return None
    return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None


def _relayout(node: ir.Node) -> ir.TensorProtocol | None:
    """A large constant seen in another layout, as a tensor that is computed whenever it is read."""
    source = node.inputs[0]
    tensor = source.const_value if source is not None else None
    if source is None or tensor is None:
        return None
    shape = list(static_dims(tensor))
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm") or range(len(shape))[::-1])
        return derived_tensor(tensor.dtype, [shape[axis] for axis in perm], [source], lambda a: a.transpose(perm))
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
        output = node.outputs[0].shape
        if output is None or not output.is_static():
            return None
        target = list(output.numpy())
        return derived_tensor(tensor.dtype, target, [source], lambda a: a.reshape(target))
    if node.op_type == "Cast":
        to = ir.DataType(attribute(node, "to"))
        if to not in _PLAIN_FLOATS or tensor.dtype not in _PLAIN_FLOATS:
            return None
        return derived_tensor(to, shape, [source], lambda a: a.astype(to.numpy()))
    return None


_PLAIN_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def remove_copies(graph: ir.Graph) -> bool:
    """Removes Identity, Dropout at inference, and Casts to the dtype a value already has."""
    changed = False
    for node in list(graph):
        if node.domain != "" or not node.inputs or node.inputs[0] is None or not _is_copy(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if output.is_graph_output() and (
            source.is_graph_input() or source.is_graph_output() or source.is_initializer()
        ):
            continue
        if source.graph is not graph and source.producer() is None:
            continue
        if output.is_graph_output() and (source.producer() is None or source.producer().graph is not graph):  # type: ignore[union-attr]
            continue
        substitute(graph, output, source)
        graph.remove(node, safe=True)
        changed = True
    return changed


def _is_copy(node: ir.Node) -> bool:
    source = node.inputs[0]
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = input_at(node, 2)
        known = ints_or_bool(training) if training is not None else False
        unused_mask = len(node.outputs) < 2 or not (node.outputs[1].uses() or node.outputs[1].is_graph_output())
        return known is False and unused_mask
    if node.op_type == "Cast":
        return source is not None and source.dtype is not None and source.dtype == ir.DataType(attribute(node, "to"))
    if node.op_type in ("Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    if node.op_type in ("Unsqueeze", "Squeeze"):
        axes = input_at(node, 1)
        return axes is not None and ints(axes) == []
    return False


def ints_or_bool(value: ir.Value) -> bool | None:
    """The truth of a constant of one element, or None where it is not constant."""
    if not is_constant(value) or value.const_value is None or value.const_value.size != 1:
        return None
    return bool(value.const_value.numpy().reshape(()))


def merge_repeats(graph: ir.Graph) -> bool:
    """Computes equal nodes (same op, inputs and attributes) once, and keeps equal small constants once."""
    changed = _merge_constants(graph)
    seen: dict[tuple[Any, ...], ir.Node] = {}
    for node in list(graph):
        if node.op_type in _RANDOM or any(output.is_graph_output() for output in node.outputs):
            continue
        key = _node_key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        for old, new in zip(node.outputs, first.outputs, strict=True):
            substitute(graph, old, new)
        graph.remove(node, safe=True)
        changed = True
    return changed


def _node_key(node: ir.Node) -> tuple[Any, ...] | None:
    attributes = []
    for attr in node.attributes.values():
        if attr.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING) or attr.type in (
            ir.AttributeType.INTS,
            ir.AttributeType.FLOATS,
            ir.AttributeType.STRINGS,
        ):
            value = attr.value
            attributes.append((attr.name, attr.type, tuple(value) if isinstance(value, list) else value))
        else:
            return None
    inputs = tuple(0 if value is None else id(value) for value in node.inputs)
    return (
        node.domain,
        node.op_type,
        node.version,
        # Also of ops that do not say it elsewhere: a QuantizedMap has only its output to tell int8 from uint8.
        tuple(output.dtype for output in node.outputs),
        inputs,
        tuple(sorted(attributes, key=lambda a: a[0])),
    )


def _merge_constants(graph: ir.Graph) -> bool:
    seen: dict[tuple[Any, ...], ir.Value] = {}
    changed = False
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > 256:
            continue
        if value.is_graph_output() or value.is_graph_input():
            continue
        key = (tensor.dtype, static_dims(tensor), tensor.tobytes())
        first = seen.setdefault(key, value)
        if first is not value and value.uses():
            value.replace_all_uses_with(first)
            changed = True
    return changed
