"""Lowers the ops that a statically quantised Model computes on dequantised bytes to ops that compute on the bytes.

Quantisers write ``QuantizeLinear(op(DequantizeLinear(x), DequantizeLinear(W)))``. What that means in real numbers,
integers compute exactly up to the last rounding:

* ``QuantizedConv`` and ``QuantizedLinear`` (X, W, scales, bias?, residual?): W holds integers less their zero points,
  int8 or int16; `scales` is float32, one per output channel; the bias is float32, or int32 in steps of
  ``x_scale * scales``. Attributes: ``x_scale``, ``x_zero_point``, ``x_dtype``, and so on for y, the residual, and the
  product, where that is rounded before the residual is added; ``activation`` (none, relu or clip). Without ``y_scale``
  the output is float32.
* ``QuantizedAdd`` (A, B): ``a_scale``, ``a_zero_point``, ... and ``activation``.

This must run before constants are folded: dequantised weights would be plain floats.
"""

from __future__ import annotations

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
    dims,
    fused,
    input_at,
    is_op,
    is_used,
    producer,
    replace_node,
    single_use,
    static_dims,
)
from headrace.graph.passes.activation import activation_after
from headrace.graph.passes.quantization import (
    Quantization,
    QuantizedConstant,
    bias_in_steps,
    constant_integers,
    dequantized,
    quantization_of,
    quantized_as,
    quantized_constant,
    turned,
)

# Inputs of one output: sums of products of bytes must fit 32 bits; csrc/ops/linear/static_int8.h has the same number.
_INPUTS_MAX = 28000

_ACTIVATIONS = ("relu", "clip")

# A convolution's own attributes.
_WINDOW = ("group", "dilations", "kernel_shape", "pads", "strides", "auto_pad")


def fuse_quantized(graph: ir.Graph) -> bool:
    """Makes QuantizedConvs, QuantizedLinears and QuantizedAdds.

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in list(graph):
        if not is_used(node) or node.domain != "":
            continue
        if node.op_type == "Conv":
            changed |= _from_conv(graph, node)
        elif node.op_type in ("MatMul", "Gemm"):
            changed |= _from_product(graph, node)
        elif node.op_type in ("QLinearConv", "QLinearMatMul"):
            changed |= _from_qlinear(graph, node)
    order = {output: position for position, node in enumerate(graph) for output in node.outputs}
    for node in list(graph):
        if is_op(node, "Add") and is_used(node):
            changed |= _from_add(graph, node, order)
    return changed


def _from_conv(graph: ir.Graph, node: ir.Node) -> bool:
    x, weight = dequantized(node.inputs[0]), quantized_constant(graph, node.inputs[1])
    if x is None or weight is None or weight.axis not in (None, 0):
        return False
    assert weight.value.const_value is not None
    shape = static_dims(weight.value.const_value)
    if not 3 <= len(shape) <= 5 or int(np.prod(shape[1:])) > _INPUTS_MAX:
        return False
    return _put(graph, node, "QuantizedConv", x, weight, shape[0], input_at(node, 2))


def _from_product(graph: ir.Graph, node: ir.Node) -> bool:
    x, weight_value, bias = dequantized(node.inputs[0]), node.inputs[1], input_at(node, 2)
    flip = bool(attribute(node, "transB", 0))
    turn = producer(weight_value, "Transpose")
    if turn is not None and list(attribute(turn, "perm", (1, 0))) == [1, 0]:
        weight_value, flip = turn.inputs[0], not flip
    plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
    if x is None or not plain or (bias is not None and attribute(node, "beta", 1.0) != 1.0):
        return False
    weight = quantized_constant(graph, weight_value)
    if weight is None or weight.value.const_value is None or len(static_dims(weight.value.const_value)) != 2:
        return False
    if flip:
        weight = turned(graph, weight)
    assert weight.value.const_value is not None
    k, width = static_dims(weight.value.const_value)
    if weight.axis not in (None, 1) or k > _INPUTS_MAX:
        return False
    return _put(graph, node, "QuantizedLinear", x, weight, width, bias)


def _from_qlinear(graph: ir.Graph, node: ir.Node) -> bool:
    """QLinearConv and QLinearMatMul, which have all of it in one node."""
    is_conv = node.op_type == "QLinearConv"
    x, bias = node.inputs[0], input_at(node, 8)
    x_quantization = None if x is None else quantization_of(node, x.dtype)
    y_quantization = quantization_of(node, node.outputs[0].dtype, at=6)
    weight = constant_integers(graph, node.inputs[3], node.inputs[4], node.inputs[5], 0 if is_conv else 1)
    if x is None or x_quantization is None or y_quantization is None or weight is None:
        return False
    assert weight.value.const_value is not None
    shape = static_dims(weight.value.const_value)
    if bias is not None and bias.const_value is None:
        return False
    if int(np.prod(shape[1:] if is_conv else shape[:1])) > _INPUTS_MAX or not (2 < len(shape) < 6 or not is_conv):
        return False
    if not is_conv and len(shape) != 2:
        return False
    width = shape[0 if is_conv else 1]
    scales = np.ascontiguousarray(np.broadcast_to(weight.scales, (width,)))
    attributes = {name: attr for name, attr in node.attributes.items() if name in _WINDOW}
    attributes |= x_quantization.attributes("x") | y_quantization.attributes("y")
    attributes["activation"] = ir.AttrString("activation", "none")
    inputs = [x, weight.value, add_constant(graph, f"{weight.value.name}_scales", scales), bias]
    op_type = "QuantizedConv" if is_conv else "QuantizedLinear"
    replace_node(graph, node.outputs[0], fused(op_type, inputs, attributes))
    return True


def _put(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    x: tuple[ir.Value, Quantization],
    weight: QuantizedConstant,
    width: int,
    bias_value: ir.Value | None,
) -> bool:
    source, x_quantization = x
    output = node.outputs[0]
    scales = np.ascontiguousarray(np.broadcast_to(weight.scales, (width,)))
    add = single_use(output)
    if op_type == "QuantizedLinear" and bias_value is None and is_op(add, "Add") and add is not None:
        # A product's bias stands behind it.
        other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
        if bias_in_steps(graph, other, x_quantization.scale, scales, width) is not None:
            bias_value, output = other, add.outputs[0]
    bias = bias_in_steps(graph, bias_value, x_quantization.scale, scales, width)
    if bias_value is not None and bias is None:
        return False
    attributes = {name: attr for name, attr in node.attributes.items() if name in _WINDOW}
    attributes |= x_quantization.attributes("x")
    output, activation = _activated(output)
    attributes |= activation
    quantizer = single_use(output)
    y = quantized_as(quantizer)
    if quantizer is not None and y is not None:
        output = quantizer.outputs[0]
        attributes |= y.attributes("y")
    inputs = [source, weight.value, add_constant(graph, f"{weight.value.name}_scales", scales), bias]
    replace_node(graph, output, fused(op_type, inputs, attributes))
    return True


def _activated(output: ir.Value) -> tuple[ir.Value, dict[str, ir.Attr]]:
    """What becomes of `output` in the activation behind it, with the attributes that say so."""
    found = activation_after(output)
    if found is None or found.name not in _ACTIVATIONS:
        return output, {"activation": ir.AttrString("activation", "none")}
    attributes: dict[str, ir.Attr] = {"activation": ir.AttrString("activation", found.name)}
    for name, bound in found.attributes.items():
        attributes[name] = ir.AttrFloat32(name, bound)
    return found.output, attributes


def _from_add(graph: ir.Graph, node: ir.Node, order: dict[ir.Value, int]) -> bool:
    """The sum of two tensors of one shape: taken in by the product that makes one of them, or an op of its own."""
    output, activation = _activated(node.outputs[0])
    quantizer = single_use(output)
    y = quantized_as(quantizer)
    if quantizer is None or y is None or dims(node.inputs[0]) is None or dims(node.inputs[0]) != dims(node.inputs[1]):
        return False
    terms = [dequantized(value) for value in node.inputs]
    place = order[node.outputs[0]]
    # Of two products the later one takes the sum: the other operand then comes from before it.
    ages = [-1 if value is None else _age(value, order) for value in node.inputs]
    for index in (1, 0) if ages[0] < ages[1] else (0, 1):
        other = terms[1 - index]
        fits = other is not None and _takes_sum(node.inputs[index], node)
        if not fits or other is None:
            continue
        product, rounding = _product_of(node.inputs[index])
        assert product is not None
        attributes = {**product.attributes, **activation, **y.attributes("y"), **other[1].attributes("residual")}
        if rounding is not None:
            attributes |= rounding.attributes("product")
        inputs = [*product.inputs, *[None] * (4 - len(product.inputs)), other[0]]
        made = replace_node(graph, quantizer.outputs[0], fused(product.op_type, inputs, attributes))
        order[made] = place
        return True
    first, second = terms
    if first is None or second is None:
        return False
    (a, a_quantization), (b, b_quantization) = first, second
    attributes = {**activation, **a_quantization.attributes("a"), **b_quantization.attributes("b"), **y.attributes("y")}
    order[replace_node(graph, quantizer.outputs[0], fused("QuantizedAdd", [a, b], attributes))] = place
    return True


def _age(value: ir.Value, order: dict[ir.Value, int]) -> int:
    found = dequantized(value)
    return order.get(found[0] if found is not None else value, -1)


def _product_of(value: ir.Value | None) -> tuple[ir.Node | None, Quantization | None]:
    """The product that makes `value`, and what it is rounded to on the way, if it is."""
    for op_type in ("QuantizedConv", "QuantizedLinear"):
        product = producer(value, op_type, domain=HEADRACE_DOMAIN)
        if product is not None:
            return product, None
        found = dequantized(value)
        product = producer(found[0], op_type, domain=HEADRACE_DOMAIN) if found is not None else None
        if product is not None and found is not None and _is_rounded_to(product, found[1]):
            return product, found[1]
    return None, None


def _is_rounded_to(product: ir.Node, read: Quantization) -> bool:
    """Whether the bytes of `product` stand for the numbers that they are `read` as: nothing says that they do."""
    return all(attribute(product, name) == attr.value for name, attr in read.attributes("y").items())


def _takes_sum(value: ir.Value | None, add: ir.Node) -> bool:
    product, rounding = _product_of(value)
    if product is None or value is None or single_use(value) is not add or input_at(product, 4) is not None:
        return False
    if attribute(product, "activation") != "none":
        return False
    # Rounded, it goes through a DequantizeLinear that nothing else may start from.
    return rounding is None or single_use(product.outputs[0]) is not None
