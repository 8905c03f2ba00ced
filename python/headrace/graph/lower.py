"""Lowers an optimised graph to the flat op list that the C++ runtime executes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace import _core
from headrace.errors import InvalidModel, UnsupportedOp
from headrace.graph._onnx_ir import ir
from headrace.graph.precision import Precisions, assign
from headrace.graph.signature import dtype_name
from headrace.signature import Signature

_ABSENT = -1

_ONNX_DOMAINS = ("", "ai.onnx")


def lower(
    graph: ir.Model,
    signature: Signature,
    isa: str,
    precision: str = "fp32",
    winograd: Mapping[ir.Node, int] | None = None,
    *,
    keep_constants: bool = False,
) -> _core.Program:
    """Builds the Program of a Model, packing weights for `isa` and `precision` on the way.

    `winograd` holds the tiles of the convolutions that run by Winograd; see `headrace.graph.winograd`. With
    `keep_constants`, weights stay beside what was packed of them, for a device that packs them in its own way.

    Raises:
        UnsupportedOp: Some nodes have no kernel; all of them are listed.
        InvalidModel: A node breaks the rules of its op.
    """
    builder = _core.ProgramBuilder(isa, keep_constants)
    return _Lowering(graph, signature, builder, assign(graph.graph, precision), winograd or {}).run()


class _Lowering:
    def __init__(
        self,
        model: ir.Model,
        signature: Signature,
        builder: _core.ProgramBuilder,
        precisions: Precisions,
        winograd: Mapping[ir.Node, int],
    ) -> None:
        self._model = model
        self._precisions = precisions
        self._winograd = winograd
        self._signature = signature
        self._builder = builder
        self._ids: dict[ir.Value, int] = {}
        self._refused: list[tuple[str, str, str]] = []

    def run(self) -> _core.Program:
        graph = self._model.graph
        for value, spec in zip(graph.inputs, self._signature.inputs, strict=True):
            self._ids[value] = self._builder.add_input(spec.name, spec.dtype, list(spec.dims))
        for node in graph:
            self._add_node(node)
        if self._refused:
            raise UnsupportedOp("native", self._refused)
        for value, spec in zip(graph.outputs, self._signature.outputs, strict=True):
            self._builder.add_output(spec.name, spec.dtype, list(spec.dims), self._id_of(value))
        return self._builder.finish()

    def _add_node(self, node: ir.Node) -> None:
        op = node.op_type if node.domain in _ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
        name = node.name or ""
        try:
            if node.op_type == "Constant" and node.domain in _ONNX_DOMAINS:
                self._ids[node.outputs[0]] = self._builder.add_constant(name, _constant_of(node))
                return
            ids = self._builder.add_op(
                op,
                name,
                self._opset_of(node),
                self._attributes_of(node),
                [_ABSENT if value is None else self._id_of(value) for value in node.inputs],
                [value.name or "" for value in node.outputs],
                [self._dtype_of(value) if value.name else "" for value in node.outputs],
            )
        except (UnsupportedOp, _NotLowered) as error:
            reason = error.nodes[0][2] if isinstance(error, UnsupportedOp) else str(error)
            self._refused.append((op, name, reason))
            # Later nodes are still looked at: a stand-in keeps their inputs known.
            ids = [self._stand_in(value) for value in node.outputs]
        self._ids.update(zip(node.outputs, ids, strict=True))

    def _opset_of(self, node: ir.Node) -> int:
        if node.version is not None:
            return node.version
        imports = self._model.graph.opset_imports
        return imports.get(node.domain, imports.get("ai.onnx", 1) if node.domain == "" else 1)

    def _id_of(self, value: ir.Value) -> int:
        if value not in self._ids:
            tensor = value.const_value
            if tensor is None:
                raise InvalidModel(f"value {value.name!r} is read but nothing computes it")
            _dtype_name(tensor.dtype, f"constant {value.name!r}")
            self._ids[value] = self._builder.add_constant(value.name or "", tensor_array(tensor))
        return self._ids[value]

    def _stand_in(self, value: ir.Value) -> int:
        dtype = (dtype_name(value.dtype) if value.dtype is not None else None) or "float32"
        return self._builder.add_input(f"refused:{value.name}", dtype, [])

    def _attributes_of(self, node: ir.Node) -> dict[str, Any]:
        attributes = {key: _attribute(attr) for key, attr in node.attributes.items() if _is_set(attr)}
        if node in self._precisions.nodes:
            attributes["precision"] = self._precisions.nodes[node]
        if node in self._winograd:
            attributes["winograd"] = self._winograd[node]
        return attributes

    def _dtype_of(self, value: ir.Value) -> str:
        if value in self._precisions.narrow:
            return "bfloat16"
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise _NotLowered(f"output {value.name!r} is a {type(value.type).__name__}, expected a tensor")
        if value.dtype is None:
            raise _NotLowered(f"the dtype of output {value.name!r} could not be inferred")
        return _dtype_name(value.dtype, f"output {value.name!r}")


class _NotLowered(Exception):
    """Why one node cannot be lowered."""


def _dtype_name(dtype: ir.DataType, where: str) -> str:
    name = dtype_name(dtype)
    if name is None:
        raise _NotLowered(f"{where} has dtype {dtype.name}, which the runtime does not hold")
    return name


def tensor_array(tensor: ir.TensorProtocol) -> np.ndarray:
    """The tensor as numpy; strings as an object array of `str`."""
    if tensor.dtype == ir.DataType.STRING:
        raw = np.asarray(tensor.numpy(), dtype=object)
        texts = np.empty(raw.shape, dtype=object)
        for index, item in np.ndenumerate(raw):
            texts[index] = item.decode("utf-8", "replace") if isinstance(item, bytes) else item
        return texts
    return tensor.numpy()


def _constant_of(node: ir.Node) -> np.ndarray:
    """The value of a Constant node, whichever of its attributes holds it."""
    (attr,) = node.attributes.values()
    match attr.name:
        case "value":
            tensor = attr.as_tensor()
            _dtype_name(tensor.dtype, "the constant")
            return tensor_array(tensor)
        case "value_float":
            return np.float32(attr.as_float())  # type: ignore[return-value]
        case "value_floats":
            return np.array(attr.as_floats(), dtype=np.float32)
        case "value_int":
            return np.int64(attr.as_int())  # type: ignore[return-value]
        case "value_ints":
            return np.array(attr.as_ints(), dtype=np.int64)
        case "value_string":
            return np.array(attr.as_string(), dtype=object)
        case "value_strings":
            return np.array(list(attr.as_strings()), dtype=object)
    raise _NotLowered(f"a Constant given as {attr.name!r}")


def _is_set(attr: Any) -> bool:
    """False for empty lists, which the runtime reads as absent."""
    return not (isinstance(attr.value, list | tuple) and len(attr.value) == 0)


def _attribute(attr: Any) -> Any:
    """An attribute as int, float, str or a list of one of them. Tensors lose their dims."""
    match attr.type:
        case ir.AttributeType.INT:
            return int(attr.as_int())
        case ir.AttributeType.FLOAT:
            return float(attr.as_float())
        case ir.AttributeType.STRING:
            return attr.as_string()
        case ir.AttributeType.INTS:
            return [int(item) for item in attr.as_ints()]
        case ir.AttributeType.FLOATS:
            return [float(item) for item in attr.as_floats()]
        case ir.AttributeType.STRINGS:
            return list(attr.as_strings())
        case ir.AttributeType.TENSOR:
            array = tensor_array(attr.as_tensor()).reshape(-1)
            if array.dtype == object:
                return list(array)
            if array.dtype.kind == "f":
                return [float(item) for item in array]
            if array.dtype.kind in "iub":
                return [int(item) for item in array]
    raise _NotLowered(f"attribute {attr.name!r} of type {attr.type.name} (a subgraph, say) is not supported")
