"""Finds the op at which a Plan and the reference part.

Every value of the Plan is looked at, once: the Model is compiled with all its values as outputs, and the reference
computes each op alone, from what the Plan gave that op. The first op, in the graph's order, whose output is then
another is wrong by itself; what rounding did before it plays no part, however much later ops make of it.

Where every op is right by itself, the fault needs company: ops that run as one, or share memory, as they do in the Plan
but not in one that keeps every value. Then ever shorter parts of the graph are compiled, which keep only what is read
later, and compared with the reference: a binary search over the graph's order, which ends at an op whose output differs
although all that was there before it agrees. Ops with subgraphs (If, Loop, Scan) are found in that way alone, and as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from headrace.backend import Executable, Request, Result
from headrace.errors import ParityError
from headrace.graph._onnx_ir import ir
from headrace.graph.probe import each_alone, exposed, name_of, prefix, subgraphs
from headrace.model import Model
from headrace.parity import Difference, beyond, is_float, tolerance_of

Compile = Callable[[Model], Executable]


@dataclass(frozen=True)
class Divergence:
    """The op at which a Plan and the reference part.

    Attributes:
        op: Its type, with the domain in front if it is not ONNX's.
        node: The node's name.
        place: Its place in the optimised graph.
        difference: The worst element of its output.
        alone: Whether it is wrong by itself, given what the Plan gave it; else only together with the ops before it.
        inside: The types of the ops in its subgraphs, any of which may be the one.
    """

    op: str
    node: str
    place: int
    difference: Difference
    alone: bool
    inside: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = "on the very inputs it had" if self.alone else "in company: every op agrees where all values are kept"
        if self.inside:
            how = f"somewhere in its subgraphs, which are not looked into ({', '.join(self.inside)})"
        return f"first at op {self.place}, {self.op} (node {self.node!r}), wrong {how}: {self.difference}"


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        model: The Model of both.
        compile: Compiles a Model as the Plan was.
        reference: Compiles a Model on the reference backend.
        request: The Request on which they part.
        tolerance: As for `headrace.parity.beyond`.
        precision: The Plan's.
    """

    model: Model
    compile: Compile
    reference: Compile
    request: Request
    tolerance: float | None
    precision: str

    def wrong_op(self) -> tuple[Divergence | None, Result]:
        """The first op that is wrong by itself, if there is one, and the Results of the Plan that keeps all values."""
        values = _run(self.compile, exposed(self.model), self.request)
        model, request = each_alone(self.model, {**self.request, **values})
        expected = _run(self.reference, model, request)
        found = None
        for place in range(len(self.model.graph.graph)):
            if found := self._part(place, values, expected, alone=True):
                break
        return found, self._results(values)

    def wrong_in_company(self) -> Divergence | None:
        """The op at which ever shorter parts of the graph begin to differ from the reference, or None."""
        expected = _run(self.reference, exposed(self.model), self.request)
        agrees, differs = -1, len(self.model.graph.graph) - 1
        got = _run(self.compile, prefix(self.model, differs), self.request)
        if self._differs(got, expected) is None:
            return None
        while differs - agrees > 1:
            middle = (agrees + differs) // 2
            there = _run(self.compile, prefix(self.model, middle), self.request)
            if self._differs(there, expected) is None:
                agrees = middle
            else:
                differs, got = middle, there
        # Where its own outputs agree, keeping one value less is what spoilt another, which is still there.
        places = (differs, *range(differs))
        return next(filter(None, (self._part(place, got, expected, alone=False) for place in places)), None)

    def _part(self, place: int, got: Result, expected: Result, *, alone: bool) -> Divergence | None:
        """What to say of the op at `place`, if its outputs differ."""
        node = self.model.graph.graph[place]
        for output, value in enumerate(node.outputs):
            name = name_of(place, output)
            difference = self._differs({name: got[name]} if name in got else {}, expected)
            if difference is not None and not self._tied(place, name, got, expected):
                named = replace(difference, output=value.name or "")
                return Divergence(_op(node), node.name or "", place, named, alone, _inside(node))
        return None

    def _differs(self, got: Result, expected: Result) -> Difference | None:
        shared = {name: expected[name] for name in got if name in expected}
        try:
            return beyond([got], [shared], self.tolerance, self.precision) if shared else None
        except ParityError:  # another shape or dtype
            name = next(name for name, want in shared.items() if not _alike(got[name], want))
            return Difference(name, 0, (), _form(got[name]), _form(shared[name]), float("inf"), 0.0)

    def _tied(self, place: int, name: str, got: Result, expected: Result) -> bool:
        """Whether classes differ only where rounding may swap their scores, which are an output of the same op."""
        node = self.model.graph.graph[place]
        classes = [attr.value for key, attr in node.attributes.items() if key.startswith("classlabels") and attr.value]
        wanted, labels = expected[name], got[name]
        if not classes or wanted.shape != labels.shape:
            return False
        for output in range(len(node.outputs)):
            scores = expected.get(name_of(place, output))
            if scores is None or not is_float(scores.dtype) or scores.shape != (len(labels), len(classes[0])):
                continue
            allowed = 2 * (self.tolerance or tolerance_of(self.precision, scores.dtype)) * np.abs(scores).max(axis=1)
            of_label = {label: column for column, label in enumerate(classes[0])}
            rows = np.flatnonzero(labels != wanted)
            columns = [of_label.get(label) for label in labels[rows].tolist()]
            return all(
                column is not None and scores[row, column] >= scores[row].max() - allowed[row]
                for row, column in zip(rows, columns, strict=True)
            )
        return False

    def _results(self, values: Result) -> Result:
        names = {
            value: name_of(place, output)
            for place, node in enumerate(self.model.graph.graph)
            for output, value in enumerate(node.outputs)
        }
        outputs = zip(self.model.signature.outputs, self.model.graph.graph.outputs, strict=True)
        return {spec.name: values[names[value]] for spec, value in outputs if names.get(value) in values}


def _op(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _inside(node: ir.Node) -> tuple[str, ...]:
    return tuple(sorted({_op(inner) for graph in subgraphs(node) for inner in graph.all_nodes()}))


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _run(compile_: Compile, model: Model, request: Request) -> Result:
    executable = compile_(model)
    try:
        return executable.run_batch([request])[0]
    finally:
        executable.close()
