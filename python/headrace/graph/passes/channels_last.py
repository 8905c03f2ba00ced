"""Runs the image part of a graph channels last: [N, C, spatial...] becomes [N, spatial..., C] inside.

A convolution of few taps is then a matrix product of rows that lie ready, and what is around it works on whole pixels.
Each rule rewrites one node as ``Transpose(op(Transpose(x)))``; where two such nodes meet, the Transposes between them
cancel, so that they remain at the borders of a region alone. Convolutions always change layout; other ops follow where
what they read is channels last already.

``headrace.FusedConv``, ``headrace.MaxPool`` and ``headrace.AveragePool`` carry ``layout="nhwc"``: their X, Y and
residual are channels last, their weights and attributes are ONNX's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import (
    HEADRACE_DOMAIN,
    add_constant,
    attribute,
    constant,
    derived_tensor,
    fused,
    input_at,
    ints,
    is_constant,
    producer,
    static_dims,
    substitute,
)
from headrace.graph.passes.bytes import is_per_tensor
from headrace.graph.passes.conv import batch_norm_vectors
from headrace.graph.passes.quantization import BYTES
from headrace.graph.passes.rules import POINTWISE

# The opset from which a reduction takes its axes as an input.
_AXES_AS_INPUT = {"ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18, "ReduceSum": 13}


def to_channels_last(graph: ir.Graph, opset: int) -> bool:
    """Applies the rules, once, from the inputs on. `opset` is that of ONNX's own ops.

    Returns:
        Whether the graph changed.
    """
    return _Rewriter(graph, opset).run()


def to_last(rank: int) -> list[int]:
    """The permutation that brings the channels of [N, C, spatial...] last."""
    return [0, *range(2, rank), 1]


def to_first(rank: int) -> list[int]:
    """Its inverse."""
    return [0, rank - 1, *range(1, rank - 1)]


class _Rewriter:
    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        # Transposes made here, by what they transpose: each stands before all nodes that are still to come.
        self._turned: dict[ir.Value, ir.Value] = {}
        # Values that a rule has turned back: only these draw other ops along.
        self._turned_back: set[ir.Value] = set()

    def run(self) -> bool:
        changed = False
        for node in list(self._graph):
            rule = _RULES.get((node.domain, node.op_type))
            if rule is not None and any(output.uses() or output.is_graph_output() for output in node.outputs):
                changed |= rule(self, node)
        return changed

    # ---- what the rules share ----

    def is_last(self, value: ir.Value | None) -> bool:
        """Whether a rule has made `value`, channels last, and turned it back."""
        return value in self._turned_back

    def last(self, before: ir.Node, value: ir.Value, rank: int) -> ir.Value:
        """`value`, of that rank, with its channels last; a Transpose is put before `before` where one is needed."""
        turn = producer(value, "Transpose")
        if turn is not None and turn.inputs[0] is not None and list(attribute(turn, "perm", ())) == to_first(rank):
            return turn.inputs[0]
        if value not in self._turned:
            if is_constant(value):
                self._turned[value] = self._turned_constant(value, rank)
            else:
                turn = ir.node("Transpose", [value], {"perm": to_last(rank)})
                turn.outputs[0].type = value.type
                turn.outputs[0].shape = _permuted(value.shape, to_last(rank))
                self._graph.insert_before(before, turn)
                self._turned[value] = turn.outputs[0]
        return self._turned[value]

    def _turned_constant(self, value: ir.Value, rank: int) -> ir.Value:
        """A constant as it broadcasts against `rank` dims."""
        assert value.const_value is not None
        shape = static_dims(value.const_value)
        full = (*[1] * (rank - len(shape)), *shape)
        turned = [full[axis] for axis in to_last(rank)]
        tensor = derived_tensor(
            value.const_value.dtype, turned, [value], lambda array: array.reshape(full).transpose(to_last(rank))
        )
        return add_constant(self._graph, f"{value.name}_last", tensor)

    def put(self, old: ir.Node, new: ir.Node, rank: int) -> None:
        """Puts `new`, whose outputs are those of `old` channels last, in place of it."""
        new.name = old.name
        self._graph.insert_before(old, new)
        for was, now in zip(old.outputs, new.outputs, strict=False):  # BatchNormalization's further ones are unused
            now.type, now.shape = was.type, _permuted(was.shape, to_last(rank))
            turn = ir.node("Transpose", [now], {"perm": to_first(rank)}, name=f"{old.name}_first")
            back = turn.outputs[0]
            back.type, back.shape = was.type, was.shape
            self._graph.insert_before(old, turn)
            substitute(self._graph, was, back)
            self._turned_back.add(back)

    # ---- the rules ----

    def conv(self, node: ir.Node) -> bool:
        x, weight, residual = node.inputs[0], node.inputs[1], input_at(node, 3)
        if x is None or weight is None or weight.const_value is None or attribute(node, "layout", "nchw") != "nchw":
            return False
        rank = len(static_dims(weight.const_value))
        inputs = [self.last(node, x, rank), *node.inputs[1:3]]
        if residual is not None:
            inputs += [self.last(node, residual, rank)]
        self.put(node, fused("FusedConv", inputs, {**node.attributes, "layout": _nhwc()}), rank)
        return True

    def quantized_conv(self, node: ir.Node) -> bool:
        x, weight, residual = node.inputs[0], node.inputs[1], input_at(node, 4)
        if x is None or weight is None or weight.const_value is None or attribute(node, "layout", "nchw") != "nchw":
            return False
        rank = len(static_dims(weight.const_value))
        inputs = [self.last(node, x, rank), *node.inputs[1:4]]
        if residual is not None:
            inputs += [self.last(node, residual, rank)]
        self.put(node, fused("QuantizedConv", inputs, {**node.attributes, "layout": _nhwc()}), rank)
        return True

    def pool(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        dtypes = (ir.DataType.FLOAT, *BYTES) if node.op_type == "MaxPool" else (ir.DataType.FLOAT,)
        if x is None or not self.is_last(x) or x.dtype not in dtypes or len(node.outputs) > 1:
            return False
        rank = len(attribute(node, "kernel_shape")) + 2
        new = fused(node.op_type, [self.last(node, x, rank)], {**node.attributes, "layout": _nhwc()})
        self.put(node, new, rank)
        return True

    def global_pool(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        rank = _rank(x)
        if x is None or rank is None or not self.is_last(x):
            return False
        op_type = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[node.op_type]
        self.put(node, self._reduction(op_type, self.last(node, x, rank), list(range(1, rank - 1))), rank)
        return True

    def _reduction(self, op_type: str, x: ir.Value, axes: list[int]) -> ir.Node:
        if self._opset < _AXES_AS_INPUT[op_type]:
            return ir.node(op_type, [x], {"axes": axes, "keepdims": 1})
        value = add_constant(self._graph, f"{x.name}_axes", np.array(axes, dtype=np.int64))
        return ir.node(op_type, [x, value], {"keepdims": 1})

    def reduction(self, node: ir.Node) -> bool:
        x, rank = node.inputs[0], _rank(node.inputs[0])
        given = input_at(node, 1)
        axes = ints(given) if given is not None else attribute(node, "axes")
        if x is None or rank is None or not self.is_last(x) or not axes or not attribute(node, "keepdims", 1):
            return False
        places = to_first(rank)
        turned = sorted(places[axis % rank] for axis in axes)
        self.put(node, self._reduction(node.op_type, self.last(node, x, rank), turned), rank)
        return True

    def pointwise(self, node: ir.Node) -> bool:
        rank = _rank(node.outputs[0])
        inputs = [value for value in node.inputs if value is not None]
        if rank is None or rank < 3 or len(inputs) != len(node.inputs):
            return False
        if not any(self.is_last(value) for value in inputs):
            return False
        if any(_rank(value) != rank and not is_constant(value) for value in inputs) or "axis" in node.attributes:
            return False
        turned = [value if _is_single(value) else self.last(node, value, rank) for value in inputs]
        self.put(node, ir.node(node.op_type, turned, node.attributes, version=node.version), rank)
        return True

    def quantize(self, node: ir.Node) -> bool:
        x, rank = node.inputs[0], _rank(node.inputs[0])
        if x is None or rank is None or rank < 3 or not self.is_last(x) or not is_per_tensor(node):
            return False
        new = ir.node(node.op_type, [self.last(node, x, rank), *node.inputs[1:]], node.attributes, version=node.version)
        self.put(node, new, rank)
        return True

    def bytewise(self, node: ir.Node) -> bool:
        """QuantizedAdd of tensors of one shape, QuantizedMap of a tensor and its table."""
        rank = _rank(node.outputs[0])
        inputs = [value for value in node.inputs if value is not None]
        if rank is None or rank < 3 or not any(self.is_last(value) for value in inputs):
            return False
        images = len(inputs) if node.op_type == "QuantizedAdd" else 1
        turned = [*(self.last(node, value, rank) for value in inputs[:images]), *inputs[images:]]
        self.put(node, fused(node.op_type, turned, dict(node.attributes)), rank)
        return True

    def clip(self, node: ir.Node) -> bool:
        x, rank = node.inputs[0], _rank(node.inputs[0])
        if x is None or rank is None or not self.is_last(x):
            return False
        new = ir.node(node.op_type, [self.last(node, x, rank), *node.inputs[1:]], node.attributes, version=node.version)
        self.put(node, new, rank)
        return True

    def concat(self, node: ir.Node) -> bool:
        rank = _rank(node.outputs[0])
        inputs = [value for value in node.inputs if value is not None]
        if rank is None or not any(self.is_last(value) for value in inputs):
            return False
        axis = to_first(rank)[attribute(node, "axis") % rank]
        self.put(node, ir.node("Concat", [self.last(node, value, rank) for value in inputs], {"axis": axis}), rank)
        return True

    def split(self, node: ir.Node) -> bool:
        x, rank = node.inputs[0], _rank(node.inputs[0])
        if x is None or rank is None or not self.is_last(x):
            return False
        axis = ir.AttrInt64("axis", to_first(rank)[attribute(node, "axis", 0) % rank])
        new = ir.node(
            "Split",
            [self.last(node, x, rank), *node.inputs[1:]],
            {**node.attributes, "axis": axis},
            num_outputs=len(node.outputs),
        )
        self.put(node, new, rank)
        return True

    def pad(self, node: ir.Node) -> bool:
        x, rank, pads = node.inputs[0], _rank(node.inputs[0]), ints(input_at(node, 1))
        if x is None or rank is None or not self.is_last(x) or pads is None or input_at(node, 3) is not None:
            return False
        perm = to_last(rank)
        turned = [pads[axis] for axis in perm] + [pads[rank + axis] for axis in perm]
        value = add_constant(self._graph, f"{x.name}_pads", np.array(turned, dtype=np.int64))
        inputs = [self.last(node, x, rank), value, *node.inputs[2:3]]
        self.put(node, ir.node("Pad", inputs, node.attributes, version=node.version), rank)
        return True

    def batch_norm(self, node: ir.Node) -> bool:
        """What no convolution took in: a product and a sum per channel."""
        x, rank = node.inputs[0], _rank(node.inputs[0])
        if x is None or rank is None or not self.is_last(x):
            return False
        scale = node.inputs[1]
        shape = static_dims(scale.const_value) if scale is not None and scale.const_value is not None else ()
        vectors = batch_norm_vectors(node, shape[0]) if shape else None
        if vectors is None:
            return False
        factor, shift = (
            add_constant(self._graph, f"{node.outputs[0].name}_{name}", vector.astype(np.float32))
            for name, vector in zip(("factor", "shift"), vectors, strict=True)
        )
        product = ir.node("Mul", [self.last(node, x, rank), factor])
        product.outputs[0].type, product.outputs[0].shape = x.type, _permuted(x.shape, to_last(rank))
        self._graph.insert_before(node, product)
        self.put(node, ir.node("Add", [product.outputs[0], shift]), rank)
        return True


def _nhwc() -> ir.Attr:
    return ir.AttrString("layout", "nhwc")


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _permuted(shape: ir.Shape | None, perm: Sequence[int]) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[axis] for axis in perm])


def _is_single(value: ir.Value) -> bool:
    """Whether `value` is a constant of one element and no more dims than a vector: it broadcasts in any layout."""
    array = constant(value)
    return array is not None and array.size == 1 and array.ndim <= 1


_Rule = Callable[[_Rewriter, ir.Node], bool]

_RULES: dict[tuple[str, str], _Rule] = {
    (HEADRACE_DOMAIN, "FusedConv"): _Rewriter.conv,
    (HEADRACE_DOMAIN, "QuantizedConv"): _Rewriter.quantized_conv,
    (HEADRACE_DOMAIN, "QuantizedAdd"): _Rewriter.bytewise,
    (HEADRACE_DOMAIN, "QuantizedMap"): _Rewriter.bytewise,
    ("", "QuantizeLinear"): _Rewriter.quantize,
    ("", "DequantizeLinear"): _Rewriter.quantize,
    ("", "MaxPool"): _Rewriter.pool,
    ("", "AveragePool"): _Rewriter.pool,
    ("", "GlobalAveragePool"): _Rewriter.global_pool,
    ("", "GlobalMaxPool"): _Rewriter.global_pool,
    ("", "Concat"): _Rewriter.concat,
    ("", "Split"): _Rewriter.split,
    ("", "Pad"): _Rewriter.pad,
    ("", "Clip"): _Rewriter.clip,
    ("", "BatchNormalization"): _Rewriter.batch_norm,
    **{("", op_type): _Rewriter.reduction for op_type in _AXES_AS_INPUT},
    **{("", op_type): _Rewriter.pointwise for op_type in (*POINTWISE, "PRelu")},
}
