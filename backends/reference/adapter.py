"""Runs Models on the ONNX project's ReferenceEvaluator: what every other backend is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import DeadlineExceeded, ExecutionError, UnsupportedOp
from headrace.model import Model


class ReferenceExecutable(Executable):
    """One evaluator; Requests are run one by one."""

    def __init__(self, plan: Plan, evaluator: ReferenceEvaluator, outputs: list[str]) -> None:
        self.plan = plan
        self._evaluator = evaluator
        self._outputs = outputs

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Runs each Request alone, in order."""
        return [self._run(request) for request in requests]

    def run_until(self, request: Request, deadline: float) -> Result:
        """Runs one Request, unless that takes too long; a single slow node is waited for.

        Args:
            request: The Request, checked against the signature.
            deadline: On the clock of `time.monotonic`.

        Raises:
            DeadlineExceeded: It was not done at the deadline.
        """
        nodes = self._evaluator.rt_nodes_
        self._evaluator.rt_nodes_ = _Until(nodes, deadline)
        try:
            return self._run(request)
        finally:
            self._evaluator.rt_nodes_ = nodes

    def _run(self, request: Request) -> Result:
        try:
            values = self._evaluator.run(self._outputs, dict(request))
        except DeadlineExceeded:
            raise
        except Exception as error:  # numpy and the evaluator raise anything
            raise ExecutionError(f"the ONNX reference evaluator failed: {type(error).__name__}: {error}") from error
        return {name: _plain(value) for name, value in zip(self._outputs, values, strict=True)}


class _Until(list[Any]):
    """The nodes of an evaluator, which goes through them one by one and can be stopped only here."""

    def __init__(self, nodes: Iterable[Any], deadline: float) -> None:
        super().__init__(nodes)
        self._deadline = deadline

    def __iter__(self) -> Iterator[Any]:
        for node in super().__iter__():
            if time.monotonic() > self._deadline:
                raise DeadlineExceeded("reference backend: got no Result at its deadline, expected one")
            yield node


def _plain(value: object) -> np.ndarray:
    """An output as Headrace gives it: an array of its own, which the evaluator's may not be; strings as objects."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array.copy()


class ReferenceBackend(Backend):
    """The ONNX project's numpy evaluator. Right first, and slow."""

    name = "reference"
    contract = 1

    def probe(self) -> Availability:
        """Always there: onnx is a dependency of the package."""
        return Availability(ok=True, devices=("cpu",))

    def capabilities(self) -> Capabilities:
        """Every Request is run alone, so nothing it returns can depend on a batch."""
        return Capabilities(precisions=("fp32",), ragged=True, batch_invariant=True)

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """Asks the evaluator, which looks every op up when it is made, and leaves out what it is known to get wrong."""
        if wrong := _known_wrong(model):
            return wrong
        try:
            ReferenceEvaluator(model.to_proto())
        except Exception as error:
            return [("?", model.name, f"the ONNX reference evaluator refuses it: {error}")]
        return []

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Makes an evaluator of the optimised graph, with Headrace's own ops expanded to ONNX functions."""
        if wrong := _known_wrong(model):
            raise UnsupportedOp(self.name, wrong)
        proto: ModelProto = model.to_proto()
        try:
            evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise UnsupportedOp(self.name, [("?", model.name, str(error))]) from error
        plan = Plan(
            backend=self.name,
            device="cpu",
            isa="numpy",
            precision="fp32",
            threads=1,
            reasons=("the ONNX reference evaluator runs each Request alone",),
        )
        return ReferenceExecutable(plan, evaluator, [spec.name for spec in model.signature.outputs])


def _known_wrong(model: Model) -> list[tuple[str, str, str]]:
    refused = []
    for node in model.graph.graph.all_nodes():
        opset = node.version or model.graph.opset_imports.get("", 1)
        if node.op_type == "Loop" and len(node.outputs) > len(node.inputs) - 2:
            refused.append(("Loop", node.name or "", "the evaluator gives scan outputs one axis too many"))
        elif node.op_type == "Scan" and opset < 9:
            refused.append(("Scan", node.name or "", "the evaluator lacks the batch axis of opset 8"))
    return refused
