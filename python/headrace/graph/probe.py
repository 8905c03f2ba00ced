"""Models made of a Model to look inside it: its values as outputs, its ops one by one, the part before an op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.edit import is_constant, remove_dead
from headrace.graph.signature import dtype_name, signature_of
from headrace.model import Model

Values = Mapping[str, np.ndarray]


def name_of(node: int, output: int) -> str:
    """What the models of this module call an output of the node at place `node` of the graph."""
    return f"op{node}.{output}"


def exposed(model: Model) -> Model:
    """`model` with every value that a Request can hold as an output, named by `name_of`."""
    graph = model.graph.clone()
    outputs = [value for values in _named(graph.graph) for value in values]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(outputs)
    return _model(model, graph)


def prefix(model: Model, last: int) -> Model:
    """The nodes up to the place `last`, with the values that are read later or are results as outputs."""
    graph = model.graph.clone()
    read_later: set[ir.Value | None] = set(graph.graph.outputs)
    for place, node in enumerate(graph.graph):
        read_later |= _reads(node) if place > last else set()
    named = _named(graph.graph)[: last + 1]
    frontier = [value for values in named for value in values if value in read_later]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(frontier)
    remove_dead(graph.graph)
    return _model(model, graph)


def each_alone(model: Model, values: Values) -> tuple[Model, Values]:
    """Every op on inputs of its own, and the Request that gives each what it has in `values`.

    Left out are ops with subgraphs and those that read a value which no Request can hold.

    Args:
        model: The Model.
        values: A Request to it, and what it then computes, by `name_of`.
    """
    names = {value: value.name or "" for value in model.graph.graph.inputs}
    for place, node in enumerate(model.graph.graph):
        names |= {value: name_of(place, output) for output, value in enumerate(node.outputs)}
    inputs: dict[str, ir.Value] = {}
    constants: dict[ir.Value, ir.Value] = {}
    nodes, outputs = [], []
    for place, node in enumerate(model.graph.graph):
        reads = [value for value in node.inputs if value is not None and not _constant(value)]
        if any(names.get(value) not in values for value in reads) or subgraphs(node):
            continue
        makes = [ir.Value(name=name_of(place, output), type=value.type, shape=value.shape)
                 for output, value in enumerate(node.outputs)]  # fmt: skip
        for value, made in zip(node.outputs, makes, strict=True):
            made.name = made.name if value.name else ""
        for value in reads:
            inputs.setdefault(names[value], _input(value, f"given.{names[value]}", values[names[value]]))
        for given in node.inputs:
            if given is not None and _constant(given) and given not in constants:
                constants[given] = ir.Value(
                    name=f"constant{len(constants)}", type=given.type, shape=given.shape, const_value=given.const_value
                )
        own = [None if v is None else constants.get(v) or inputs[names[v]] for v in node.inputs]
        nodes.append(
            ir.Node(node.domain, node.op_type, own, node.attributes, outputs=makes, version=node.version,
                    name=node.name)
        )  # fmt: skip
        outputs += [made for value, made in zip(node.outputs, makes, strict=True) if _holdable(value)]
    imports = dict(model.graph.opset_imports)
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=nodes, initializers=list(constants.values()), opset_imports=imports,
        name=model.name,
    )  # fmt: skip
    alone = _model(model, ir.Model(graph, ir_version=model.graph.ir_version))
    return alone, {f"given.{name}": values[name] for name in inputs}


def _model(model: Model, graph: ir.Model) -> Model:
    return replace(model, graph=graph, signature=signature_of(graph.graph, f"model {model.name!r}, looked into"))


def _named(graph: ir.Graph) -> list[list[ir.Value]]:
    """The outputs of each node that a Request can hold, renamed to `name_of`."""
    named = []
    for place, node in enumerate(graph):
        held = []
        for output, value in enumerate(node.outputs):
            if _holdable(value):
                value.name = name_of(place, output)
                held.append(value)
        named.append(held)
    return named


def _reads(node: ir.Node) -> set[ir.Value | None]:
    """What a node reads, inside its subgraphs too."""
    inner = (value for graph in subgraphs(node) for node in graph.all_nodes() for value in node.inputs)
    return {*node.inputs, *inner}


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """What an If, a Loop or a Scan runs, or any op with a graph for an attribute."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _holdable(value: ir.Value) -> bool:
    tensor = value.type is None or isinstance(value.type, ir.TensorType)
    return bool(value.name) and tensor and value.dtype is not None and dtype_name(value.dtype) is not None


def _constant(value: ir.Value) -> bool:
    return is_constant(value) and value.is_initializer()


def _input(value: ir.Value, name: str, array: np.ndarray) -> ir.Value:
    """An input for a value as large as `array`; its dims keep what is fixed, and get names of their own."""
    known = list(value.shape) if value.shape is not None and len(value.shape) == array.ndim else [None] * array.ndim
    dims = [dim if isinstance(dim, int) else f"{name}_{axis}" for axis, dim in enumerate(known)]
    return ir.Value(name=name, type=value.type, shape=ir.Shape(dims))
