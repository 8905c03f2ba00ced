"""What can be known about values without running the graph: symbolic shapes, contents of shape tensors, index grids.

`headrace.graph.passes.analysis` finds the facts, by the rules of `headrace.graph.passes.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headrace.graph import dims as sym
from headrace.graph._onnx_ir import ir
from headrace.graph.dims import Dim
from headrace.graph.edit import constant, static_dims

Dims = tuple[Dim, ...]

# Contents are followed for integer tensors of at most this many elements: shapes are short.
_CONTENT_ELEMENTS_MAX = 64


@dataclass
class Fact:
    """What is known about one value.

    Attributes:
        shape: Its dims; every unknown dim has a name of its own.
        content: For a small integer tensor of rank 0 or 1, its elements as dims.
        uniform: The one number all elements equal.
        index_axis: The axis whose index every element equals: ``value[i0, i1, ...] == i[index_axis]``.
        grid: For an index tensor as GatherND takes it: the index axis of each component along its last axis.
        base: A smaller value that this one is a broadcast of.
    """

    shape: Dims | None = None
    content: Dims | None = None
    uniform: float | None = None
    index_axis: int | None = None
    grid: tuple[int | None, ...] | None = None
    base: ir.Value | None = None


@dataclass
class Facts:
    """The facts of one graph's values, by value.

    Attributes:
        known: What has been found out so far.
        names: The names of the dims of the graph's inputs. A dim spelled in them says more than one that is not.
    """

    known: dict[ir.Value, Fact] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def of(self, value: ir.Value | None) -> Fact:
        """What is known about `value`, at least the shape it is annotated with."""
        if value is None:
            return Fact()
        fact = self.known.get(value)
        if fact is None:
            fact = self.known[value] = annotated(value)
        return fact

    def shape(self, value: ir.Value | None) -> Dims | None:
        """The dims of `value`, or None where not even its rank is known."""
        return self.of(value).shape


def annotated(value: ir.Value) -> Fact:
    """What `value` itself says: its dims, and its contents where it is a small constant."""
    array = constant(value)
    fact = Fact()
    if value.const_value is not None:
        fact.shape = static_dims(value.const_value)
    elif value.shape is not None:
        fact.shape = tuple(
            dim if isinstance(dim, int) else sym.canonical(dim.value) if dim.value else f"?{value.name}:{axis}"
            for axis, dim in enumerate(value.shape)
        )
    if array is not None and array.dtype.kind in "iub" and array.size:
        if array.ndim <= 1 and array.size <= _CONTENT_ELEMENTS_MAX:
            fact.content = tuple(int(x) for x in array.reshape(-1))
        first = array.reshape(-1)[0]
        if (array == first).all():
            fact.uniform = float(first)
        else:
            fact.index_axis = _index_axis(array)
    elif array is not None and array.dtype.kind == "f" and array.size == 1:
        fact.uniform = float(array.reshape(()))
    return fact


def _index_axis(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int | None:
    wide = [axis for axis, dim in enumerate(array.shape) if dim > 1]
    if len(wide) == 1 and (array.reshape(-1) == np.arange(array.size)).all():
        return wide[0]
    return None
