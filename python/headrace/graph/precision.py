"""Which nodes of a graph run in a lower precision, and which values between them are held in it.

Only ops that spend their time multiplying matrices are lowered, and the depthwise convolutions between them, which read
and write bfloat16 and compute in float32. Norms, softmax, sums of residuals and everything else stay float32, and so do
a Model's inputs and outputs. In an int8 Plan attention runs in bf16: both of its operands are known only when it runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN, attribute, static_dims

PRECISIONS = ("fp32", "bf16", "int8")


class _Kernel(NamedTuple):
    """What a fused op runs in, and the inputs it also reads as bfloat16. It can write its output as bfloat16 too."""

    precision: str
    reads: tuple[int, ...]


_ATTENTION = _Kernel("bf16", (0, 1, 2))

# The fused ops that are lowered in a Plan of each precision.
_LOWERED: dict[str, dict[str, _Kernel]] = {
    "fp32": {},
    "bf16": {"Linear": _Kernel("bf16", (0,)), "FusedConv": _Kernel("bf16", (0, 3)), "Attention": _ATTENTION},
    "int8": {"Linear": _Kernel("int8", (0,)), "FusedConv": _Kernel("int8", (0, 3)), "Attention": _ATTENTION},
}


@dataclass(frozen=True)
class Precisions:
    """What `assign` decided.

    Attributes:
        precision: The Plan's.
        nodes: The precision of every lowered node.
        narrow: The values that are held as bfloat16: one lowered node writes them, and only lowered nodes read them.
    """

    precision: str = "fp32"
    nodes: dict[ir.Node, str] = field(default_factory=dict)
    narrow: frozenset[ir.Value] = frozenset()

    def summary(self, ops: int) -> str:
        """How many of a Plan's `ops` run in what, for people."""
        counts = Counter(self.nodes.values())
        own = counts.pop(self.precision, 0)
        others = "".join(f", {count} in {precision}" for precision, count in counts.items())
        return f"{own} of {ops} ops run in {self.precision}{others}, the others in fp32"


def assign(graph: ir.Graph, precision: str) -> Precisions:
    """Lowers every node of `graph` that has kernels for `precision`.

    Args:
        graph: An optimised graph; it is not changed.
        precision: One of `PRECISIONS`.
    """
    kernels = _LOWERED[precision]
    nodes = {
        node: "bf16" if _is_depthwise(node) else kernels[node.op_type].precision
        for node in graph
        if node.domain == HEADRACE_DOMAIN and node.op_type in kernels and _has_weights(node)
    }
    narrow = frozenset(
        node.outputs[0]
        for node in nodes
        if node.outputs[0].uses()
        and not node.outputs[0].is_graph_output()
        and all(use.node in nodes and use.idx in kernels[use.node.op_type].reads for use in node.outputs[0].uses())
    )
    return Precisions(precision, nodes, narrow)


def _has_weights(node: ir.Node) -> bool:
    """False for a convolution whose weights are not constant: kernels take only constant ones in lower precision."""
    weight = node.inputs[1]
    return node.op_type != "FusedConv" or (weight is not None and weight.const_value is not None)


def _is_depthwise(node: ir.Node) -> bool:
    """Whether `node` is a convolution of one channel per group: no product of matrices."""
    if node.op_type != "FusedConv":
        return False
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return attribute(node, "group", 1) > 1 and static_dims(weight.const_value)[1] == 1
