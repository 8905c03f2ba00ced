"""A graph written out as one Python function: what Backends that call another library op by op run.

A Backend gives each node the function that runs it; the script calls them one after the other, keeps every value in a
local variable, and lets go of it after its last use. For two nodes it reads::

    def run(x):
        v0 = f0(x, c0)
        del x
        v1 = f1(v0)
        del v0
        return (v1,)

Where a library computes on a device, shape arithmetic stays with the host: a Reshape that had to ask the device for its
target would wait for all that runs there. Each value therefore has one of two places, see `host_values`.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any

import numpy as np

from headrace.graph._onnx_ir import ir
from headrace.graph.lower import tensor_array

HOST, DEVICE = "host", "device"

# Constants of up to this many elements may be shapes, axes or pads.
_SHAPE_ELEMENTS_MAX = 64

# Inputs that say what to do, not what to do it with: ops read them as Python ints.
_PARAMETERS: dict[str, frozenset[int]] = {
    "Reshape": frozenset({1}), "Expand": frozenset({1}), "Slice": frozenset({1, 2, 3, 4}), "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}), "Tile": frozenset({1}), "Pad": frozenset({1, 2, 3}), "TopK": frozenset({1}),
    "Split": frozenset({1}), "CumSum": frozenset({1}), "Trilu": frozenset({1}), "OneHot": frozenset({1}),
}  # fmt: skip

# Ops that stay with the host where all they read is there.
_SHAPE_OPS = frozenset({
    "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Abs", "Neg", "Cast", "Concat", "Gather", "Slice", "Squeeze",
    "Unsqueeze", "Reshape", "Flatten", "Identity", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not",
    "And", "Or", "Where", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Ceil", "Floor", "Sqrt", "Split",
    "ConstantOfShape", "Range",
})  # fmt: skip

_numbers = count()


class Untranslated(Exception):
    """Why a Backend has no function for a node."""


class Attributes:
    """A node's attributes as plain values."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._values: dict[str, Any] = {}
        for name, attr in node.attributes.items():
            if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise Untranslated(f"attribute {name!r} is a subgraph")
            self._values[name] = attr.value
        self.outputs = len(node.outputs)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, or `default` if it is absent; tensors as numpy arrays."""
        value = self._values.get(name, default)
        if isinstance(value, ir.TensorProtocol):
            return tensor_array(value)
        return list(value) if isinstance(value, tuple) else value

    def output_type(self, index: int) -> int:
        """ONNX's code for the dtype of output `index`.

        Raises:
            Untranslated: It is not known.
        """
        dtype = self._node.outputs[index].dtype
        if dtype is None:
            raise Untranslated(f"the dtype of output {index} could not be inferred")
        return int(dtype)

    def has_input(self, index: int) -> bool:
        """Whether the node has its optional input `index`."""
        return index < len(self._node.inputs) and self._node.inputs[index] is not None

    def constant(self, index: int) -> np.ndarray[Any, Any] | None:
        """Input `index` as numpy, or None where it is absent or not constant."""
        value = self._node.inputs[index] if self.has_input(index) else None
        return None if value is None or value.const_value is None else tensor_array(value.const_value)


@dataclass(frozen=True)
class Step:
    """How a Backend runs one node.

    Attributes:
        function: Takes the node's inputs, None for absent ones, and returns its output or a tuple of outputs.
        reads: Another place than the usual one in which the function wants its constant inputs, by input. What it
            means is between the Backend's translation and its `place`.
    """

    function: Callable[..., Any]
    reads: dict[int, str] = field(default_factory=dict)


def key_of(node: ir.Node) -> str:
    """The op's name, with its domain in front if it is not ONNX's."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def opset_of(model: ir.Model, node: ir.Node) -> int:
    """The opset that defines `node`."""
    return node.version or model.opset_imports.get(node.domain, 1)


def untranslated(model: ir.Model, translate: Callable[[ir.Node, int], object]) -> list[tuple[str, str, str]]:
    """The nodes that `translate` refuses, as `headrace.backend.Backend.unsupported` lists them."""
    refused = []
    for node in model.graph:
        try:
            translate(node, opset_of(model, node))
        except Untranslated as error:
            refused.append((key_of(node), node.name or "", str(error)))
    return refused


def host_values(graph: ir.Graph) -> set[ir.Value]:
    """The values that are computed on the host: texts, and what the sizes of tensors alone decide."""
    found: set[ir.Value] = {value for value in graph.inputs if value.dtype == ir.DataType.STRING}
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        sizes = node.op_type in ("Shape", "Size") and node.domain == ""
        follows = node.op_type in _SHAPE_OPS and node.domain == "" and any(value in found for value in given)
        texts = any(value.dtype == ir.DataType.STRING for value in (*given, *node.outputs))
        if sizes or texts or (follows and all(value in found or _is_shape_like(value) for value in given)):
            found.update(node.outputs)
    return found


def _is_shape_like(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and (tensor.size <= _SHAPE_ELEMENTS_MAX or tensor.dtype == ir.DataType.STRING)


class Script:
    """A graph as one Python function of its inputs, which returns its outputs in a tuple.

    Attributes:
        run: The function. Not wrapped in anything, so that other compilers may take it apart.
        source: Its text.
        ops: How many nodes it runs.
    """

    def __init__(
        self,
        model: ir.Model,
        translate: Callable[[ir.Node, int], Step],
        place: Callable[[np.ndarray[Any, Any], str], Any],
        move: Callable[[Any], Any] | None = None,
    ) -> None:
        """Writes the function.

        Args:
            model: The optimised graph.
            translate: Gives a node and its opset their `Step`.
            place: Makes of a constant what functions take: in `HOST`, in `DEVICE`, or where a Step `reads` it.
            move: Brings a value from the host to the device; None where they are one.

        Raises:
            Untranslated: A node has no Step.
        """
        self._place, self._move = place, move
        self._host = host_values(model.graph) if move is not None else set()
        self._names: dict[ir.Value, str] = {}
        self._constants: dict[tuple[ir.Value, str], str] = {}
        self._scope: dict[str, Any] = {"move": move}
        self._nodes: dict[int, str] = {}  # the line that runs a node -> what to call it
        self._lines: list[str] = []
        self.ops = 0
        self._write(model, translate)
        self._constant_ids = {id(self._scope[name]) for name in self._constants.values()}
        self.source = "\n".join(self._lines) + "\n"
        self._file = f"<headrace script {next(_numbers)}>"
        # Lets tracebacks show the line, and compilers that start from the source find it.
        linecache.cache[self._file] = (len(self.source), None, self.source.splitlines(keepends=True), self._file)
        exec(compile(self.source, self._file, "exec"), self._scope)
        self.run: Callable[..., tuple[Any, ...]] = self._scope["run"]

    def forget(self) -> None:
        """Lets go of the constants and the source."""
        self._scope.clear()
        linecache.cache.pop(self._file, None)

    def constants(self) -> list[Any]:
        """The constants, as they were placed; none after `forget`."""
        return [self._scope[name] for name in self._constants.values() if name in self._scope]

    def is_constant(self, value: object) -> bool:
        """Whether `value` is one of the constants, not merely equal to one."""
        return id(value) in self._constant_ids

    def node_of(self, error: BaseException) -> str:
        """The name of the node whose function raised `error`, or "?" if none did."""
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                return self._nodes.get(trace.tb_lineno, "?")
            trace = trace.tb_next
        return "?"

    def _write(self, model: ir.Model, translate: Callable[[ir.Node, int], Step]) -> None:
        graph = model.graph
        nodes = list(graph)
        last_use: dict[ir.Value, int] = {}
        for index, node in enumerate(nodes):
            last_use.update((value, index) for value in (*node.inputs, *node.outputs) if value is not None)
        kept = set(graph.outputs)
        for value in graph.inputs:
            self._names[value] = f"x{len(self._names)}"
        self._lines.append(f"def run({', '.join(self._names[value] for value in graph.inputs)}):")
        for index, node in enumerate(nodes):
            step = translate(node, opset_of(model, node))
            self._scope[f"f{index}"] = step.function
            given = ", ".join(self._argument(node, at, value, step) for at, value in enumerate(node.inputs))
            for value in node.outputs:
                self._names[value] = f"v{len(self._names)}"
            targets = ", ".join(self._names[value] for value in node.outputs)
            several = ", *_" if len(node.outputs) > 1 else ""
            self._lines.append(f"    {targets}{several} = f{index}({given})")
            self._nodes[len(self._lines)] = f"{key_of(node)} {node.name!r}"
            touched = dict.fromkeys(value for value in (*node.inputs, *node.outputs) if value is not None)
            self._drop(value for value in touched if last_use[value] == index and value not in kept)
        results = "".join(f"{self._output(value)}, " for value in graph.outputs)
        self._lines.append(f"    return ({results})")
        self.ops = len(nodes)

    def _drop(self, values: Iterable[ir.Value]) -> None:
        names = [self._names[value] for value in values if value in self._names]
        if names:
            self._lines.append(f"    del {', '.join(names)}")

    def _argument(self, node: ir.Node, at: int, value: ir.Value | None, step: Step) -> str:
        if value is None:
            return "None"
        on_host = self._wants_host(node, at)
        if node.op_type in ("Shape", "Size") and value in self._names:
            return self._names[value]  # read where it is
        if value not in self._names:
            return self._constant(value, step.reads.get(at, HOST if on_host else DEVICE))
        name = self._names[value]
        return f"move({name})" if value in self._host and not on_host else name

    def _wants_host(self, node: ir.Node, at: int) -> bool:
        """Whether input `at` of `node` is wanted on the host: it is a parameter, or all the node makes stays there."""
        if self._move is None:
            return False
        if any(value in self._host for value in node.outputs):
            return True
        if node.domain != "":
            return False
        return at in _PARAMETERS.get(node.op_type, ()) or (node.op_type.startswith("Reduce") and at == 1)

    def _constant(self, value: ir.Value, where: str) -> str:
        key = (value, where)
        if key not in self._constants:
            assert value.const_value is not None
            self._constants[key] = f"c{len(self._constants)}"
            self._scope[self._constants[key]] = self._place(tensor_array(value.const_value), where)
        return self._constants[key]

    def _output(self, value: ir.Value) -> str:
        return self._names[value] if value in self._names else self._constant(value, HOST if self._move else DEVICE)
