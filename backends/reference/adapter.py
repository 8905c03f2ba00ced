"""Runs Models on the ONNX project's ReferenceEvaluator: what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.errors import BackendUnavailable, ExecutionError, UnsupportedOp
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

    def _run(self, request: Request) -> Result:
        try:
            values = self._evaluator.run(self._outputs, dict(request))
        except Exception as error:  # numpy and the evaluator raise anything
            raise ExecutionError(f"the ONNX reference evaluator failed: {type(error).__name__}: {error}") from error
        return {name: _plain(value) for name, value in zip(self._outputs, values, strict=True)}


def _plain(value: object) -> np.ndarray:
    """An output as Headrace gives it: an array, strings as objects."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


class ReferenceBackend(Backend):
    """The ONNX project's numpy evaluator. Right first, and slow."""

    name = "reference"

    def probe(self) -> Availability:
        """Always there: onnx is a dependency of the package."""
        return Availability(ok=True, devices=("cpu",))

    def capabilities(self) -> Capabilities:
        """Every Request is run alone, so nothing it returns can depend on a batch."""
        return Capabilities(precisions=("fp32",), ragged=True, batch_invariant=True)

    def unsupported(self, model: Model) -> list[tuple[str, str, str]]:
        """Asks the evaluator, which looks every op up when it is made."""
        try:
            ReferenceEvaluator(model.to_proto())
        except Exception as error:
            return [("?", model.name, f"the ONNX reference evaluator refuses it: {error}")]
        return []

    def compile(self, model: Model, options: CompileOptions) -> Executable:
        """Makes an evaluator of the optimised graph, with Headrace's own ops expanded to ONNX functions."""
        if options.device not in (None, "cpu"):
            raise BackendUnavailable(f"backend 'reference': got device {options.device!r}, expected 'cpu'")
        if options.precision != "fp32":
            raise BackendUnavailable(f"backend 'reference': got precision {options.precision!r}, expected 'fp32'")
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
