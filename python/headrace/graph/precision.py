"""Which nodes of a graph run in a lower precision, and which values between them are held in it.

Only ops that spend their time multiplying matrices are lowered. Norms, softmax, sums of residuals and everything else
stay float32, and so do a Model's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN, attribute, static_dims

PRECISIONS = ("fp32", "bf16", "int8")

# The fused ops that have kernels for a precision, and the inputs they also read as bfloat16. What they read, they may
# be given by one another: they can write it as well.
_LOWERED: dict[str, dict[str, tuple[int, ...]]] = {
    "fp32": {},
    "bf16": {"Linear": (0,), "FusedConv": (0,)},
    "int8": {"Linear": (0,), "FusedConv": (0,)},
}


@dataclass(frozen=True)
class Precisions:
    """What `assign` decided.

    Attributes:
        nodes: The precision of every lowered node.
        narrow: The values that are held as bfloat16: one lowered node writes them, and only lowered nodes read them.
    """

    nodes: dict[ir.Node, str] = field(default_factory=dict)
    narrow: frozenset[ir.Value] = frozenset()


def assign(graph: ir.Graph, precision: str) -> Precisions:
    """Lowers every node of `graph` that has kernels for `precision`.

    Args:
        graph: An optimised graph; it is not changed.
        precision: One of `PRECISIONS`.
    """
    readers = _LOWERED[precision]
    nodes = {node: precision for node in graph if node.domain == HEADRACE_DOMAIN and _multiplies(node, readers)}
    narrow = frozenset(
        node.outputs[0]
        for node in nodes
        if node.outputs[0].uses()
        and not node.outputs[0].is_graph_output()
        and all(use.node in nodes and use.idx in readers[use.node.op_type] for use in node.outputs[0].uses())
    )
    return Precisions(nodes, narrow)


def _multiplies(node: ir.Node, readers: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `node` is one of those ops and a product of matrices: a convolution of one channel per group is not."""
    if node.op_type == "FusedConv":
        weight = node.inputs[1]
        shape = static_dims(weight.const_value) if weight is not None and weight.const_value is not None else ()
        groups = attribute(node, "group", 1)
        if not shape or (groups > 1 and shape[1] == 1):
            return False
    return node.op_type in readers
