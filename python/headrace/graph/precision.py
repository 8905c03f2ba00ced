"""Which nodes of a graph run in a lower precision, and which values between them are held in it.

Only ops that spend their time multiplying matrices are lowered. Norms, softmax, sums of residuals and everything else
stay float32, and so do a Model's inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN

PRECISIONS = ("fp32", "bf16", "int8")

# The fused ops that have kernels for a precision, and the inputs they also read as bfloat16. What they read, they may
# be given by one another: they can write it as well.
_LOWERED: dict[str, dict[str, tuple[int, ...]]] = {
    "fp32": {},
    "bf16": {"Linear": (0,)},
    "int8": {"Linear": (0,)},
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
    nodes = {node: precision for node in graph if node.domain == HEADRACE_DOMAIN and node.op_type in readers}
    narrow = frozenset(
        node.outputs[0]
        for node in nodes
        if node.outputs[0].uses()
        and not node.outputs[0].is_graph_output()
        and all(use.node in nodes and use.idx in readers[use.node.op_type] for use in node.outputs[0].uses())
    )
    return Precisions(nodes, narrow)
