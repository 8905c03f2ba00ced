"""Replaces ops by the functions ONNX defines them by, where no Backend of ours has a kernel for the op itself.

Most ops that ONNX has added since opset 20 are such functions of older ones. What can be fused again is fused later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.graph._onnx_ir import ir

if TYPE_CHECKING:
    import onnx

_DOMAIN = "headrace.definitions"
_OPS = ("CausalConvWithState", "RotaryEmbedding", "SwiGLU")


def add_definitions(model: ir.Model) -> bool:
    """Turns such nodes into calls of model-local functions, which must still be inlined. Needs dtypes on all values.

    Returns:
        Whether the model changed.
    """
    changed = False
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPS:
            continue
        changed |= _define(model, node, f"{node.op_type}_{len(model.functions)}")
    return changed


def _define(model: ir.Model, node: ir.Node, name: str) -> bool:
    """Makes `node` a call of its definition. False if ONNX has none for these inputs."""
    import onnx

    opset = node.version or model.opset_imports.get("", 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    body = _body(schema, node, opset)
    if body is None:
        return False
    body.domain, body.name = _DOMAIN, name
    function = ir.serde.deserialize_function(body)
    model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
    node.domain, node.op_type, node.version = _DOMAIN, name, None
    return True


def _body(schema: onnx.defs.OpSchema, node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    import onnx

    body = onnx.FunctionProto()
    if schema.has_function:
        body.CopyFrom(schema.function_body)
        return body
    if not schema.has_context_dependent_function:
        return None
    versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if not versions:
        return None
    encoded = schema.get_context_dependent_function_with_opset_version(
        max(versions),
        ir.serde.serialize_node(node).SerializeToString(),
        [_type_of(value).SerializeToString() for value in node.inputs],
    )
    body.ParseFromString(encoded)
    return body


def _type_of(value: ir.Value | None) -> onnx.TypeProto:
    """Empty for an absent input."""
    import onnx

    if value is None or value.dtype is None:
        return onnx.TypeProto()
    dims = None if value.shape is None else [dim if isinstance(dim, int) else None for dim in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.dtype), dims)
