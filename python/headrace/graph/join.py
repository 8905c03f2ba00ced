"""One graph behind another."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.graph._onnx_ir import ir


def join(head: ir.Model, tail: ir.Model) -> ir.Model:
    """`head` followed by `tail`, which takes the one output of `head` as its one float32 input.

    Both are used up. The result has the inputs of `head` and the outputs of `tail`, under their names: an output whose
    name an input has gets a number.
    """
    graph = head.graph
    (between,) = graph.outputs
    (x,) = tail.graph.inputs
    nodes, results = list(tail.graph), list(tail.graph.outputs)
    constants = list(tail.graph.initializers.values())
    graph.outputs.clear()
    tail.graph.outputs.clear()
    tail.graph.initializers.clear()
    tail.graph.remove(nodes)
    inside = [value for node in nodes for value in node.outputs if value not in results]
    taken = {str(value.name) for value in graph.inputs}
    _rename(results, taken)
    _rename((value for node in graph for value in node.outputs), taken)
    # Initializers are registered under their names, which therefore stay.
    taken |= set(graph.initializers)
    _rename((*inside, *constants), taken)
    if between.dtype != ir.DataType.FLOAT:
        cast = ir.node("Cast", [between], {"to": ir.DataType.FLOAT.value})
        graph.append(cast)
        (between,) = cast.outputs
    x.replace_all_uses_with(between)
    for constant in constants:
        graph.register_initializer(constant)
    graph.extend(nodes)
    graph.outputs.extend(results)
    for domain, version in tail.graph.opset_imports.items():
        graph.opset_imports[domain] = max(version, graph.opset_imports.get(domain, 0))
    return head


def _rename(values: Iterable[ir.Value], taken: set[str]) -> None:
    """Numbers the values whose name is taken, and takes all their names."""
    for value in values:
        stem = str(value.name or "value")
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        value.name = name
        taken.add(name)
