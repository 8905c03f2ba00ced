"""Checks an imported model against the rules of ONNX, and brings it into the one form the passes expect.

After `prepare`: no model-local functions, a default-domain opset of at least `OPSET_MIN` (where the ONNX project's
converter reaches it), no constant among the inputs, a dtype (as far as possible a shape) on every
value, and on the outputs only the dims that their ops give.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from headrace.errors import InvalidModel
from headrace.graph._onnx_ir import ir
from headrace.graph.definitions import add_definitions
from headrace.graph.edit import static_dims
from headrace.graph.old_opsets import dtypes_of, restore, spell_out

if TYPE_CHECKING:
    import onnx

# Below it ops take as attributes what they take as inputs since (axes, split, min and max), and Softmax flattens.
OPSET_MIN = 13
_OPSET_TARGET = 18

# The checker and shape inference are C++ and take a serialized model: larger constants than this are left out of it.
_KEEP_BYTES_MAX = 1024


def prepare(model: ir.Model, where: str) -> ir.Model:
    """Checks and normalises `model`, naming `where` in errors. May change `model` and may return another one.

    Raises:
        InvalidModel: It breaks the rules of ONNX.
    """
    import onnx

    _constants_are_no_inputs(model)
    _forget_claims(model)
    with _skeleton(model) as proto:
        _let_shapes_be_unknown(proto)
        try:
            onnx.checker.check_model(proto)
        except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
            raise InvalidModel(f"{where}: not a valid ONNX model: {_first_line(error)}") from error
    if model.opset_imports.get("", OPSET_MIN) < OPSET_MIN:
        model = _upgrade(model)
    _axes_of_variance(model)
    if model.functions:
        _inline(model, where)
    _infer(model, where)
    if add_definitions(model):
        _inline(model, where)
        _infer(model, where)
    return model


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _constants_are_no_inputs(model: ir.Model) -> None:
    """Old exporters list every initializer among the inputs. Overriding weights per Request is not offered."""
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)


def _forget_claims(model: ir.Model) -> None:
    """Drops the dims that the model states of its results: nothing holds it to them, so they prove nothing.

    What an op really gives is inferred anew. A pass that believed a stated dim would drop a Slice whose result happens
    to be declared with the dims of its input. What exporters note of values between ops is kept: they derived it.
    """
    for graph in model.graphs():
        for value in graph.outputs:
            if value.shape is not None and value.producer() is not None:
                value.shape = ir.Shape([None] * len(value.shape))


def _let_shapes_be_unknown(proto: onnx.ModelProto) -> None:
    """Gives `proto`, of which only validity is asked, the shapes that ONNX wants and runtimes do without."""
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()


@contextmanager
def _skeleton(model: ir.Model) -> Iterator[onnx.ModelProto]:
    """`model` as a proto whose large constants are inputs without data. `model` is as before on leaving."""
    graph = model.graph
    constants = dict(graph.initializers)
    large = {
        name: value
        for name, value in constants.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes > _KEEP_BYTES_MAX
    }
    tensors = {name: value.const_value for name, value in large.items()}
    inputs = list(graph.inputs)
    for name, value in constants.items():
        tensor = value.const_value
        if tensor is not None:
            value.type, value.shape = (
                value.type or ir.TensorType(tensor.dtype),
                value.shape or ir.Shape(static_dims(tensor)),
            )
        if name in large:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    try:
        proto = ir.serde.serialize_model(model)
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for name, value in constants.items():
            if name in large:
                value.const_value = tensors[name]
            graph.initializers[name] = value
    yield proto


def _upgrade(model: ir.Model) -> ir.Model:
    """`model` in a newer opset. In its own where the ONNX project's converter cannot."""
    import onnx.version_converter

    opset = model.opset_imports[""]
    with _skeleton(model) as proto, suppress(onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # What cannot be inferred stays unknown here; what contradicts itself is refused after the conversion.
        _merge_graph(model.graph, onnx.shape_inference.infer_shapes(proto).graph)
    spell_out(model, opset)
    if opset < 9 and any(node.op_type == "Scan" for node in model.graph):
        return model  # the converter would drop its batch axis, and that of the signature
    with _skeleton(model) as proto:
        try:
            converted = ir.serde.deserialize_model(onnx.version_converter.convert_version(proto, _OPSET_TARGET))
        except Exception:
            return model
    restore(converted, opset, dtypes_of(model))
    return _with_constants_of(converted, model)


def _axes_of_variance(model: ir.Model) -> None:
    """States the axes that MeanVarianceNormalization has by default: ONNX's own inference fails where it does not."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == "" and node.op_type == "MeanVarianceNormalization" and "axes" not in node.attributes:
                node.attributes["axes"] = ir.AttrInt64s("axes", [0, 2, 3])


def _with_constants_of(upgraded: ir.Model, original: ir.Model) -> ir.Model:
    graph = upgraded.graph
    for name, value in original.graph.initializers.items():
        for twin in [twin for twin in graph.inputs if twin.name == name]:
            graph.inputs.remove(twin)
            if name not in graph.initializers:
                twin.const_value = value.const_value
                graph.initializers[name] = twin
    return upgraded


def _inline(model: ir.Model, where: str) -> None:
    from onnx_ir.passes.common import InlinePass

    try:
        InlinePass()(model)
    except Exception as error:
        raise InvalidModel(f"{where}: its functions cannot be inlined: {_first_line(error)}") from error
    model.functions.clear()


def _infer(model: ir.Model, where: str) -> None:
    """Puts dtypes and shapes on all values, as far as ONNX's own inference finds them.

    Raises:
        InvalidModel: A node's inputs contradict its op.
    """
    import onnx

    with _skeleton(model) as proto:
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
            raise InvalidModel(f"{where}: not a valid ONNX model: {_explain(error)}") from error
    _merge_graph(model.graph, inferred.graph)


def _explain(error: BaseException) -> str:
    """The innermost reason of an inference error, which lists the failed nodes one per line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _merge_graph(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    found = {info.name: info for info in (*inferred.value_info, *inferred.output, *inferred.input)}
    inner = {node.name: node for node in inferred.node}
    for value in (*graph.outputs, *(output for node in graph for output in node.outputs)):
        info = found.get(str(value.name))
        if info is not None:
            _merge_value(value, info)
    for index, node in enumerate(graph):
        proto = inferred.node[index] if index < len(inferred.node) else inner.get(str(node.name))
        for attr in node.attributes.values():
            twin = next((a for a in proto.attribute if a.name == attr.name), None) if proto is not None else None
            if attr.type == ir.AttributeType.GRAPH and twin is not None:
                _merge_graph(attr.as_graph(), twin.g)


def _merge_value(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    kind = ir.serde.deserialize_type_proto_for_type(info.type)
    shape = ir.serde.deserialize_type_proto_for_shape(info.type)
    if value.type is None and kind is not None:
        value.type = kind
    if shape is None:
        return
    if value.shape is None or len(value.shape) != len(shape):
        value.shape = shape
        return
    value.shape = ir.Shape(
        [
            new if isinstance(new, int) or (isinstance(old, ir.SymbolicDim) and old.value is None) else old
            for old, new in zip(value.shape, shape, strict=True)
        ]
    )
