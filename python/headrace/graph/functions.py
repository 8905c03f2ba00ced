"""What the fused ops mean, in standard ONNX ops, and a way back to a ModelProto that any runtime can run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN, attribute, input_at

if TYPE_CHECKING:
    import onnx

# Ops the passes make, and the opset they came with: in an older opset they are written out as functions. Gelu always
# is: ONNX's own is a context-dependent function, which the reference evaluator expands only where every type is known.
_SINCE = {"LayerNormalization": 17, "Gelu": math.inf, "RMSNormalization": 23}


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """`model` with every fused op as a call of a model-local function of standard ops.

    One function is written for each distinct use of an op (its attributes and which inputs it has), so that no body
    depends on attributes: ``Linear_v0``, ``Attention_v1``, ...
    """
    import onnx

    proto = ir.serde.serialize_model(model)
    opset = model.opset_imports.get("", 18)
    names: dict[tuple[Any, ...], str] = {}
    functions: list[onnx.FunctionProto] = []
    for node, target in zip(model.graph, proto.graph.node, strict=True):
        standard = node.domain == "" and opset < _SINCE.get(node.op_type, 0)
        if node.domain != HEADRACE_DOMAIN and not standard:
            continue
        key = _key(node)
        if key not in names:
            # A number right after the underscore would ask ONNX's evaluator for that version of a standard op.
            names[key] = f"{node.op_type}_v{len(names)}"
            functions.append(_function(names[key], node, opset))
        target.domain, target.op_type = HEADRACE_DOMAIN, names[key]
        del target.attribute[:]
    proto.functions.extend(functions)
    if functions and HEADRACE_DOMAIN not in model.opset_imports:
        proto.opset_import.append(onnx.helper.make_opsetid(HEADRACE_DOMAIN, 1))
    return proto


def _key(node: ir.Node) -> tuple[Any, ...]:
    attributes = tuple(sorted((name, repr(attr.value)) for name, attr in node.attributes.items()))
    ranks = tuple(_rank(value) for value in node.inputs) if node.op_type in _CHANNELS_LAST else ()
    # What a quantised op does is also in the dtypes of its bytes and its bias.
    quantized = [*node.inputs, *node.outputs] if node.op_type.startswith("Quantized") else []
    dtypes = tuple(value.dtype for value in quantized if value is not None)
    return node.op_type, attributes, tuple(value is not None for value in node.inputs), ranks, dtypes


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


class _Body:
    """Builds a function body node by node; every method returns the name of the value it makes."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = f"t{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        import onnx

        return self.op("Constant", value=onnx.numpy_helper.from_array(np.array(value, dtype=dtype)))

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def mean_of_last(self, x: str) -> str:
        if self.opset < 18:
            return self.op("ReduceMean", x, axes=[-1], keepdims=1)
        return self.op("ReduceMean", x, self.ints(-1), keepdims=1)

    def activation(self, x: str, node: ir.Node) -> str:
        name = attribute(node, "activation", "none")
        if name == "none":
            return x
        if name in ("relu", "sigmoid", "tanh"):
            return self.op(name.capitalize(), x)
        if name == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if name == "clip":
            low, high = attribute(node, "clip_min"), attribute(node, "clip_max")
            return self.op("Min", self.op("Max", x, self.const(low)), self.const(high))
        return self.gelu(x, tanh=name == "gelu_tanh")

    def gelu(self, x: str, *, tanh: bool) -> str:
        half = self.op("Mul", x, self.const(0.5))
        if tanh:
            cube = self.op("Mul", self.op("Mul", self.op("Mul", x, x), x), self.const(0.044715))
            inner = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.const(np.sqrt(2 / np.pi))))
        else:
            inner = self.op("Erf", self.op("Mul", x, self.const(np.sqrt(0.5))))
        return self.op("Mul", half, self.op("Add", inner, self.const(1)))


def _function(name: str, node: ir.Node, opset: int) -> onnx.FunctionProto:
    import onnx

    body = _Body(opset)
    inputs = [f"x{index}" for index in range(len(node.inputs))]
    present = [name if value is not None else None for name, value in zip(inputs, node.inputs, strict=True)]
    result = _BODIES[node.op_type](body, node, [*present, *[None] * (4 - len(present))])
    body.nodes.append(onnx.helper.make_node("Identity", [result], ["y"]))
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_function(HEADRACE_DOMAIN, name, inputs, ["y"], body.nodes, imports)


def _dequantized(body: _Body, node: ir.Node, x: str, prefix: str) -> str:
    return body.op("DequantizeLinear", x, *_quantization(body, node, prefix))


def _quantization(body: _Body, node: ir.Node, prefix: str) -> tuple[str, str]:
    scale, zero = attribute(node, f"{prefix}_scale"), attribute(node, f"{prefix}_zero_point")
    return body.const(scale), body.const(zero, np.dtype(attribute(node, f"{prefix}_dtype")))


def _quantized_product(body: _Body, node: ir.Node, names: list[Any]) -> str:
    x, weight, scales, bias, residual = [*names, None][:5]
    given = node.inputs[1]
    assert given is not None
    assert given.shape is not None
    rank = len(given.shape)
    is_conv = node.op_type == "QuantizedConv"
    x = _dequantized(body, node, x, "x")
    steps = body.op("Reshape", scales, body.ints(-1, *[1] * (rank - 1))) if is_conv else scales
    weight = body.op("Mul", body.op("Cast", weight, to=int(ir.DataType.FLOAT)), steps)
    if is_conv:
        first, last = _turns(node, rank)
        kept = ("group", "dilations", "kernel_shape", "pads", "strides", "auto_pad")
        attributes = {name: attr.value for name, attr in node.attributes.items() if name in kept}
        y = body.op("Conv", body.op("Transpose", x, perm=first), weight, **attributes)
        y = body.op("Transpose", y, perm=last)
    else:
        y = body.op("MatMul", x, weight)
    if bias is not None:
        in_steps = node.inputs[3]
        if in_steps is not None and in_steps.dtype == ir.DataType.INT32:
            step = body.op("Mul", scales, body.const(attribute(node, "x_scale")))
            bias = body.op("Mul", body.op("Cast", bias, to=int(ir.DataType.FLOAT)), step)
        if is_conv and attribute(node, "layout", "nchw") == "nchw":  # else channels are last
            bias = body.op("Reshape", bias, body.ints(-1, *[1] * (rank - 2)))
        y = body.op("Add", y, bias)
    if residual is not None:
        if "product_scale" in node.attributes:
            rounding = _quantization(body, node, "product")
            y = body.op("DequantizeLinear", body.op("QuantizeLinear", y, *rounding), *rounding)
        y = body.op("Add", y, _dequantized(body, node, residual, "residual"))
    y = body.activation(y, node)
    return body.op("QuantizeLinear", y, *_quantization(body, node, "y")) if "y_scale" in node.attributes else y


def _quantized_add(body: _Body, node: ir.Node, names: list[Any]) -> str:
    y = body.op("Add", *(_dequantized(body, node, name, prefix) for name, prefix in zip(names[:2], "ab", strict=True)))
    return body.op("QuantizeLinear", body.activation(y, node), *_quantization(body, node, "y"))


def _quantized_map(body: _Body, node: ir.Node, names: list[Any]) -> str:
    bits = body.op("Cast", names[0], to=int(ir.DataType.UINT8))
    y = body.op("Gather", names[1], body.op("Cast", bits, to=int(ir.DataType.INT64)))
    dtype = node.outputs[0].dtype
    assert dtype is not None
    return body.op("Cast", y, to=int(dtype))


def _linear(body: _Body, node: ir.Node, names: list[Any]) -> str:
    x, weight, bias, residual = names
    y = body.op("MatMul", x, weight)
    if bias is not None:
        y = body.op("Add", y, bias)
    y = body.activation(y, node)
    return y if residual is None else body.op("Add", y, residual)


def _fused_conv(body: _Body, node: ir.Node, names: list[Any]) -> str:
    x, weight, bias, residual = names
    own = ("activation", "clip_min", "clip_max", "layout")
    attributes = {name: attr.value for name, attr in node.attributes.items() if name not in own}
    given = node.inputs[1]
    assert given is not None
    assert given.shape is not None
    first, last = _turns(node, len(given.shape))
    x = body.op("Transpose", x, perm=first)
    y = body.op("Conv", *([x, weight] if bias is None else [x, weight, bias]), **attributes)
    y = body.op("Transpose", y, perm=last)
    if residual is not None:
        y = body.op("Add", y, residual)
    return body.activation(y, node)


def _pool(body: _Body, node: ir.Node, names: list[Any]) -> str:
    attributes = {name: attr.value for name, attr in node.attributes.items() if name != "layout"}
    first, last = _turns(node, len(attributes["kernel_shape"]) + 2)
    y = body.op(node.op_type, body.op("Transpose", names[0], perm=first), **attributes)
    return body.op("Transpose", y, perm=last)


def _turns(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """The permutations that bring the channels to where ONNX has them, and back; neither does a thing if they are."""
    if attribute(node, "layout", "nchw") == "nchw":
        return list(range(rank)), list(range(rank))
    return [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]


def _attention(body: _Body, node: ir.Node, names: list[Any]) -> str:
    x, key, value, mask = names
    layout, heads, kv_heads = (attribute(node, name) for name in ("layout", "num_heads", "kv_heads"))
    if layout == "qkv":
        # [B, S, 3*H*D] -> [B, S, 3, H, D] -> three of [B, H, S, D]
        whole = body.op("Reshape", x, body.ints(0, 0, 3, heads, -1))
        whole = body.op("Transpose", whole, perm=[2, 0, 3, 1, 4])
        query, key, value = (body.op("Gather", whole, body.const(part, np.int64), axis=0) for part in range(3))
    elif layout == "bsd":
        query, key, value = (
            body.op("Transpose", body.op("Reshape", part, body.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])
            for part, count in ((x, heads), (key, kv_heads), (value, kv_heads))
        )
    else:
        query = x
    if kv_heads != heads:
        key, value = (_repeat_heads(body, part, heads // kv_heads) for part in (key, value))
    scores = body.op("MatMul", query, body.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = body.op("Mul", scores, body.const(attribute(node, "scale")))
    if mask is not None:
        given = input_at(node, 3)
        if given is not None and given.dtype == ir.DataType.BOOL:
            scores = body.op("Where", mask, scores, body.const(-np.inf))
        else:
            scores = body.op("Add", scores, mask)
    weights = body.op("Softmax", scores, axis=-1)
    if attribute(node, "guard_nan", 0):
        weights = body.op("Where", body.op("IsNaN", weights), body.const(0), weights)
    out = body.op("MatMul", weights, value)
    if layout == "bhsd":
        return out
    return body.op("Reshape", body.op("Transpose", out, perm=[0, 2, 1, 3]), body.ints(0, 0, -1))


def _repeat_heads(body: _Body, x: str, times: int) -> str:
    """[B, Hkv, S, D] -> [B, Hkv * times, S, D], each head `times` times in a row."""
    wide = body.op("Concat", *[body.op("Unsqueeze", x, body.ints(2))] * times, axis=2)
    shape = body.op("Shape", x)
    batch, rows = (body.op("Slice", shape, body.ints(at), body.ints(at + 1)) for at in (0, 2))
    depth = body.op("Slice", shape, body.ints(3), body.ints(4))
    return body.op("Reshape", wide, body.op("Concat", batch, body.ints(-1), rows, depth, axis=0))


def _layer_norm(body: _Body, node: ir.Node, names: list[Any]) -> str:
    x, scale, shift, _ = names
    centred = body.op("Sub", x, body.mean_of_last(x))
    y = body.op("Mul", _normalised(body, node, centred), scale)
    return y if shift is None else body.op("Add", y, shift)


def _embedding_norm(body: _Body, node: ir.Node, names: list[Any]) -> str:
    scale, shift, *pairs = names
    terms = [
        rows if ids is None else body.op("Gather", rows, ids)
        for rows, ids in zip(pairs[::2], [*pairs[1::2], None], strict=False)
        if rows is not None
    ]
    y = terms[0]
    for term in terms[1:]:
        y = body.op("Add", y, term)
    return _layer_norm(body, node, [y, scale, shift, None])


def _rms_norm(body: _Body, node: ir.Node, names: list[Any]) -> str:
    return body.op("Mul", _normalised(body, node, names[0]), names[1])


def _normalised(body: _Body, node: ir.Node, x: str) -> str:
    square = body.mean_of_last(body.op("Mul", x, x))
    return body.op("Div", x, body.op("Sqrt", body.op("Add", square, body.const(attribute(node, "epsilon", 1e-5)))))


def _gelu(body: _Body, node: ir.Node, names: list[Any]) -> str:
    return body.gelu(names[0], tanh=attribute(node, "approximate", "none") == "tanh")


# Ops whose bodies depend on the rank of their inputs: most may work channels last.
_CHANNELS_LAST = ("FusedConv", "QuantizedConv", "QuantizedLinear", "MaxPool", "AveragePool")

_BODIES = {
    "Linear": _linear,
    "FusedConv": _fused_conv,
    "QuantizedConv": _quantized_product,
    "QuantizedLinear": _quantized_product,
    "QuantizedAdd": _quantized_add,
    "QuantizedMap": _quantized_map,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Attention": _attention,
    "EmbeddingNorm": _embedding_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Gelu": _gelu,
}
