"""Backends whose Batches take made-up times by a made-up clock, so that plans are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
from onnx import TensorProto, helper

import headrace as hr
from headrace import discovery
from headrace.backend import (
    CONTRACT,
    Availability,
    Backend,
    Capabilities,
    CompileOptions,
    Executable,
    Plan,
    Request,
    Result,
)
from headrace.errors import ExecutionError
from headrace.planner import cost, rehearsal, search
from headrace.planner.rehearsal import Rehearsal


class Clock:
    """Stands still until a Batch runs."""

    now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


@dataclass
class Made:
    """A made-up backend.

    Attributes:
        fixed_s: Seconds of a Batch on one thread, and
        per_request_s: of each Request in it.
        speed: Precision -> times as fast as fp32.
        scaling: Share of perfect scaling that more threads reach.
        wrong: Precision -> relative error of the answers.
        fails_above: Requests per Batch that it can still run.
        details: Of its Plans in lower precisions.
        executables: What was compiled and is still held.
    """

    fixed_s: float
    per_request_s: float
    speed: dict[str, float] = field(default_factory=lambda: {"fp32": 1.0})
    scaling: float = 0.6
    wrong: dict[str, float] = field(default_factory=dict)
    refuses: str = ""
    missing_op: str = ""
    fails_above: int = 1000
    details: dict[str, Any] = field(default_factory=dict)
    compiled: list[CompileOptions] = field(default_factory=list)
    executables: WeakSet[Executable] = field(default_factory=WeakSet)


class _Runs(Executable):
    def __init__(self, made: Made, name: str, options: CompileOptions, clock: Clock) -> None:
        threads = options.resolved_threads()
        details = made.details if options.precision != "fp32" else {}
        self.plan = Plan(name, "cpu", "made up", options.precision, threads, details=details)
        self._made, self._precision, self._clock = made, options.precision, clock
        self._speed = made.speed[options.precision] * (1 + (threads - 1) * made.scaling)

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        if len(requests) > self._made.fails_above:
            raise ExecutionError(f"no memory for {len(requests)}")
        seconds = self._made.fixed_s + self._made.per_request_s * len(requests)
        self._clock.now_s += seconds / self._speed
        wrong = 1 + self._made.wrong.get(self._precision, 0.0)
        return [{"y": (2 * request["x"] * wrong).astype(np.float32)} for request in requests]


def backend_of(name: str, made: Made, clock: Clock) -> type[Backend]:
    class Kind(Backend):
        contract = CONTRACT

        def probe(self) -> Availability:
            return Availability(not made.refuses, made.refuses, devices=("cpu",))

        def capabilities(self) -> Capabilities:
            return Capabilities(precisions=tuple(made.speed), ragged=True)

        def unsupported(self, model: hr.Model) -> list[tuple[str, str, str]]:
            return [(made.missing_op, "a node", "no such kernel")] if made.missing_op else []

        def compile(self, model: hr.Model, options: CompileOptions) -> Executable:
            made.compiled.append(options)
            executable = _Runs(made, name, options, clock)
            made.executables.add(executable)
            return executable

    Kind.name = name
    return Kind


@pytest.fixture
def doubling() -> hr.Model:
    """y = x + x of four floats."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these backends, and the real reference, the installed ones."""
    clock = Clock()
    real = discovery.sources()

    def loader(name: str, made: Made) -> Callable[[], Any]:
        return lambda: backend_of(name, made, clock)

    def install_them(**backends: Made) -> None:
        made = {name: discovery.Source("a test", loader(name, one)) for name, one in backends.items()}
        monkeypatch.setattr(discovery, "sources", lambda: {**made, "reference": real["reference"]})
        for timed in (cost, rehearsal):
            monkeypatch.setattr(timed, "time", SimpleNamespace(perf_counter=clock.perf_counter))
        # The Batcher goes by the real clock.
        monkeypatch.setattr(search, "rehearse", lambda *arguments: Rehearsal())

    return install_them
