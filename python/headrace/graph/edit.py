"""Small tools the passes share: looking at nodes and constants, and editing a graph without breaking it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim, canonical

HEADRACE_DOMAIN = "headrace"

# Constants up to this many bytes may be looked at freely by passes; larger ones are weights, read only when prepared.
SMALL_BYTES = 1 << 16


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether `node` is one of `op_types` in `domain`."""
    return node is not None and node.domain == domain and node.op_type in op_types


def producer(value: ir.Value | None, *op_types: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is one of `op_types`."""
    node = value.producer() if value is not None else None
    return node if is_op(node, *op_types, domain=domain) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain value of an attribute, or `default` where it is not set."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` has the same, known elements in every run."""
    return (
        value is not None and value.const_value is not None and (value.is_initializer() or value.producer() is not None)
    )


def constant(value: ir.Value | None, bytes_max: int = SMALL_BYTES) -> np.ndarray[Any, Any] | None:
    """The elements of a small constant, or None where `value` is not constant or is larger than `bytes_max`."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype != ir.DataType.STRING and tensor.nbytes > bytes_max:
        return None
    return np.asarray(tensor.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The one element of a constant of any rank, as a Python float, or None."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(array.reshape(()))


def same_rank(value: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both have the same, known rank. Constants of one element may add dims to what they are combined with."""
    return (
        value is not None
        and other is not None
        and value.shape is not None
        and other.shape is not None
        and len(value.shape) == len(other.shape)
    )


def ints(value: ir.Value | None) -> list[int] | None:
    """The elements of a small integer constant as a flat list, or None."""
    array = constant(value)
    return [int(x) for x in array.reshape(-1)] if array is not None and array.dtype.kind in "iu" else None


def is_used(node: ir.Node) -> bool:
    """Whether anything depends on the first output of `node`. Replaced nodes linger unused until they are removed."""
    return bool(node.outputs[0].uses()) or node.outputs[0].is_graph_output()


def single_use(value: ir.Value) -> ir.Node | None:
    """The one node that uses `value`, once, or None where there are more uses, none, or it is a graph output."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def static_dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(int(str(dim)) for dim in tensor.shape)


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The dims of `value` with symbolic ones in canonical spelling, or None where any dim is unknown."""
    if value is None or value.shape is None:
        return None
    result: list[Dim] = []
    for dim in value.shape:
        if isinstance(dim, int):
            result.append(dim)
        elif dim.value is None:
            return None
        else:
            result.append(canonical(dim.value))
    return tuple(result)


def substitute(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Makes every user of `old`, the graph's outputs included, use `new`. A graph output keeps its name."""
    if old is new:
        return
    if old.is_graph_output():
        if new.is_graph_output() or new.is_graph_input() or new.is_initializer() or new.graph is not old.graph:
            identity = ir.node("Identity", [new])
            identity.outputs[0].type, identity.outputs[0].shape = old.type, old.shape
            insert_before(graph, old, [identity])
            new = identity.outputs[0]
        name = old.name
        old.name = f"{name}_replaced"
        new.name = name
    _keep_annotation(old, new)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _keep_annotation(old: ir.Value, new: ir.Value) -> None:
    """What is said about `old` holds for the value that takes its place."""
    if new.const_value is not None:
        return
    if new.type is None:
        new.type = old.type
    if new.shape is None or (old.shape is not None and len(new.shape) != len(old.shape)):
        new.shape = old.shape
    elif old.shape is not None:
        new.shape = ir.Shape(
            [was if _says_more(was, now) else now for was, now in zip(old.shape, new.shape, strict=True)]
        )


def _says_more(was: int | ir.SymbolicDim, now: int | ir.SymbolicDim) -> bool:
    def weight(dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return 3
        return 0 if dim.value is None else 1 if dim.value.startswith("unk__") else 2

    return weight(was) > weight(now)


def insert_before(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Inserts `nodes` before the producer of `value`, or first in the graph where it has none."""
    root = value.producer()
    if root is not None and root.graph is graph:
        graph.insert_before(root, nodes)
    elif len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def replace_node(graph: ir.Graph, value: ir.Value, node: ir.Node) -> ir.Value:
    """Puts `node` where the producer of `value` is, and its first output in place of `value`.

    The new output takes dtype and shape of `value`. The old producer stays until dead code is removed.
    """
    output, root = node.outputs[0], value.producer()
    output.type, output.shape = value.type, value.shape
    if root is not None:
        node.name = root.name
    insert_before(graph, value, [node])
    substitute(graph, value, output)
    return output


def fused(op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None) -> ir.Node:
    """A node of Headrace's own domain; trailing absent inputs are dropped."""
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    return ir.node(op_type, kept, attributes or {}, domain=HEADRACE_DOMAIN, version=1)


def fresh_name(graph: ir.Graph, stem: str) -> str:
    """A name no initializer of `graph` has, derived from `stem`."""
    name, number = stem, 1
    while name in graph.initializers:
        number += 1
        name = f"{stem}_{number}"
    return name


def add_constant(graph: ir.Graph, stem: str, data: np.ndarray[Any, Any] | ir.TensorProtocol) -> ir.Value:
    """Registers a new constant; numpy arrays are referenced, not copied."""
    name = fresh_name(graph, stem)
    tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(static_dims(tensor)), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def derived_tensor(
    dtype: ir.DataType, shape: Iterable[int], sources: Sequence[ir.Value], compute: Callable[..., np.ndarray[Any, Any]]
) -> ir.LazyTensor:
    """A constant computed from other constants each time it is asked for, so that weights are never held twice."""
    tensors = [source.const_value for source in sources]
    assert all(tensor is not None for tensor in tensors)

    def evaluate() -> ir.TensorProtocol:
        arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
        return ir.Tensor(np.ascontiguousarray(compute(*arrays)), dtype=dtype)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(list(shape)))


def remove_dead(graph: ir.Graph) -> bool:
    """Removes nodes and initializers that nothing depends on. Keeps the graph's inputs."""
    changed = False
    for node in reversed(graph):
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        graph.remove(node, safe=True)
        changed = True
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
            changed = True
    return changed
