"""The passes every Model goes through when it is loaded: `optimise` runs them in order.

Each pass changes a graph in place and says whether it did. A fusion checks every condition under which the fused op
computes the same as the ops it replaces, and leaves the graph alone where one is not met.
"""

from __future__ import annotations

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import HEADRACE_DOMAIN, remove_dead
from headrace.graph.passes.activation import fuse_gelu
from headrace.graph.passes.analysis import analyse
from headrace.graph.passes.attention import fuse_attention, merge_qkv
from headrace.graph.passes.bytes import map_bytes, move_bytes
from headrace.graph.passes.channels_last import to_channels_last
from headrace.graph.passes.clean import fold_constants, lift_constants, merge_repeats, remove_copies
from headrace.graph.passes.conv import fuse_conv
from headrace.graph.passes.embedding import fuse_embeddings
from headrace.graph.passes.layout import settle_layout
from headrace.graph.passes.linear import fuse_linear, fuse_residual
from headrace.graph.passes.norm import fuse_norms
from headrace.graph.passes.quantized import fuse_quantized
from headrace.graph.passes.shapes import peel_broadcasts, simplify_shapes

__all__ = ["clean", "fuse", "optimise"]

# Shape simplification uncovers constants, which uncover shapes. Real models settle in two or three rounds.
_ROUNDS_MAX = 5


def optimise(model: ir.Model) -> None:
    """Brings `model`, already checked and inlined, into the form Backends get."""
    lift_constants(model.graph)
    remove_copies(model.graph)
    fuse_bytes(model.graph, dict(model.opset_imports))
    for graph in model.graphs():
        clean(graph, dict(model.opset_imports))
    # Subgraphs of If and Loop see outer values whose facts are not followed into them: only the main graph is fused.
    fuse(model.graph)
    if any(node.domain == HEADRACE_DOMAIN for node in model.graph):
        model.opset_imports[HEADRACE_DOMAIN] = 1


def fuse_bytes(graph: ir.Graph, opsets: dict[str, int]) -> None:
    """Makes ops on bytes of what a quantised Model computes on dequantised ones.

    Before `clean`, which folds constants: it would leave nothing of the integers that they are made of.
    """
    changed = move_bytes(graph, opsets.get("", 18))
    changed |= fuse_quantized(graph)
    changed |= map_bytes(graph, opsets)
    if changed:
        remove_dead(graph)


def clean(graph: ir.Graph, opsets: dict[str, int]) -> None:
    """Folds constants and removes copies, repeats, shape computations and dead code."""
    lift_constants(graph)
    for _ in range(_ROUNDS_MAX):
        changed = fold_constants(graph, opsets)
        changed |= remove_copies(graph)
        changed |= merge_repeats(graph)
        changed |= simplify_shapes(graph)
        remove_dead(graph)
        if not changed:
            break


def fuse(graph: ir.Graph) -> None:
    """Replaces groups of ops by the fused ops of the headrace domain."""
    if peel_broadcasts(graph):
        simplify_shapes(graph)
    remove_dead(graph)
    for fusion in (
        fuse_gelu,
        fuse_norms,
        fuse_embeddings,
        fuse_conv,
        fuse_linear,
        settle_layout,
        fuse_attention,
        merge_qkv,
        fuse_residual,
    ):
        if fusion(graph):
            remove_dead(graph)
    if to_channels_last(graph, graph.opset_imports.get("", 18)):
        remove_dead(graph)
    merge_repeats(graph)
    analyse(graph)
    remove_dead(graph)
