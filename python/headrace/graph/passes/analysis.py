"""Follows shapes and the small integer tensors that hold shapes through a graph, symbolically.

Dynamic models compute shapes as they run: Shape, Gather, Concat, Reshape. Following them names the dims of values that
the exporter left unnamed, and lets `headrace.graph.passes.shapes` remove the computation.
"""

from __future__ import annotations

from headrace.graph import dims as sym
from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.passes.facts import Dims, Facts, annotated
from headrace.graph.passes.rules import rule_for


def analyse(graph: ir.Graph) -> Facts:
    """Computes the facts of `graph`, and names on its values every dim that could be named."""
    facts = Facts()
    for value in graph.inputs:
        facts.names |= {name for dim in facts.shape(value) or () for name in sym.names(dim)}
    for node in graph:
        rule = rule_for(node)
        if rule is None or len(node.outputs) == 0:
            continue
        fact = rule(node, facts)
        if fact is None:
            continue
        output = node.outputs[0]
        stated = annotated(output)
        fact.shape = _merged(stated.shape, fact.shape, facts.names)
        facts.known[output] = fact
        if fact.shape is not None and output.const_value is None:
            output.shape = ir.Shape([None if isinstance(d, str) and d.startswith("?") else d for d in fact.shape])
    return facts


def _merged(stated: Dims | None, derived: Dims | None, known: set[str]) -> Dims | None:
    """Per axis the dim that says more: a number, else one in the inputs' names, else the exporter's own, else any."""
    if stated is None or derived is None or len(stated) != len(derived):
        return derived if stated is None else stated

    def better(said: Dim, found: Dim) -> Dim:
        if isinstance(said, int) or isinstance(found, int):
            return said if isinstance(said, int) else found
        if sym.names(said) <= known:
            return said
        return found if sym.names(found) <= known or said.startswith(("?", "unk__")) else said

    return tuple(better(said, found) for said, found in zip(stated, derived, strict=True))
