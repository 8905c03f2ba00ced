"""Whole models: right answers in every declared precision, in ragged Batches, whatever the company."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference import ReferenceEvaluator

import headrace as hr
from headrace import gate
from headrace.backend import Result
from headrace.conformance.cases import CASES, Case
from headrace.conformance.outcome import Check, Outcome, Subject, outcome_of
from headrace.errors import UnsupportedOp
from headrace.parity import compare
from headrace.samples import two_requests

if TYPE_CHECKING:
    from headrace.model import Model

# Relative error (see `headrace.parity.Parity`) of a case in a precision below fp32.
LOWERED_TOLERANCE = 0.1
# What the reference backend may take for a model file.
MODEL_S_MAX = 30.0


@cache
def loaded(name: str) -> tuple[Case, Model, list[Result]]:
    """A case, its optimised Model, and what the ONNX evaluator answers to the case's Requests with the original one."""
    case = CASES[name]()
    model = hr.load(case.model, name=name)
    evaluator = ReferenceEvaluator(case.model)
    names = [spec.name for spec in model.signature.outputs]
    expected = [dict(zip(names, map(_plain, evaluator.run(names, request)), strict=True)) for request in case.requests]
    return case, model, expected


def _plain(value: np.ndarray) -> np.ndarray:
    return value.astype(object) if value.dtype.kind in "US" else value


def _ops_of(model: Model) -> tuple[str, ...]:
    return tuple(sorted({f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.graph}))


def assert_close(got: Result, expected: Result, tolerance: float) -> None:
    """Raises AssertionError unless dtypes, shapes and values agree; floats within `tolerance`, the rest exactly."""
    for name, want in expected.items():
        if want.dtype.kind == "f":
            assert got[name].dtype == want.dtype, f"output {name!r}: got {got[name].dtype}, expected {want.dtype}"
            np.testing.assert_allclose(got[name], want, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(got[name], want, err_msg=name, strict=want.dtype != object)


def assert_same_bits(got: Result, expected: Result) -> None:
    """Raises AssertionError unless every output has the same dtype, shape and bits."""
    for name, want in expected.items():
        have = got[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape), f"output {name!r}: got another dtype or shape"
        same = have.tolist() == want.tolist() if want.dtype == object else have.tobytes() == want.tobytes()
        assert same, f"output {name!r}: got other bits than alone"


def _refusal(subject: Subject, model: Model) -> str | None:
    try:
        subject.compile(model).close()
    except UnsupportedOp as error:
        return "; ".join(f"{op}: {reason}" for op, _, reason in error.nodes)
    return None


def each_case(check: Callable[[Subject, str], str | None]) -> Callable[[Subject, bool], Iterator[Outcome]]:
    """`check` of every case that the backend does not refuse at load."""

    def run(subject: Subject, _short: bool) -> Iterator[Outcome]:
        for name in CASES:
            _, model, _ = loaded(name)

            def one(name: str = name, model: Model = model) -> str | None:
                return _refusal(subject, model) or check(subject, name)

            yield outcome_of(name, one, _ops_of(model))

    return run


def _right_answers(precision: str) -> Callable[[Subject, str], str | None]:
    def check(subject: Subject, name: str) -> None:
        case, model, expected = loaded(name)
        with subject.compile(model, precision) as engine:
            assert engine.plan.precision == precision, f"the plan says {engine.plan.precision}, expected {precision}"
            results = engine.run_batch(case.requests)
        if precision == "fp32":
            for result, want in zip(results, expected, strict=True):
                assert_close(result, want, case.tolerance)
        else:
            found = compare(results, expected)
            assert found.error <= LOWERED_TOLERANCE, (
                f"output {found.output!r}: got a relative error of {found.error:.3g}"
            )

    return check


def _answers(subject: Subject, short: bool) -> Iterator[Outcome]:
    for precision in subject.capabilities.precisions:
        for outcome in each_case(_right_answers(precision))(subject, short):
            yield Outcome(f"{outcome.subject} in {precision}", outcome.status, outcome.reason, outcome.ops)


def _ragged(subject: Subject, name: str) -> None:
    """Requests of several shapes, each twice: each gets its own answer."""
    case, model, expected = loaded(name)
    order = [*range(len(case.requests))] * 2
    with subject.compile(model, threads=2) as engine:
        results = engine.run_batch([case.requests[index] for index in order])
    for index, result in zip(order, results, strict=True):
        assert_close(result, expected[index], case.tolerance)


def _invariant(subject: Subject, name: str) -> str | None:
    """Random Batches against each Request alone, in bits, in every precision."""
    if not subject.capabilities.batch_invariant:
        return "batch_invariant is not declared"
    case, model, _ = loaded(name)
    random = np.random.default_rng(11)
    for precision in subject.capabilities.precisions:
        with subject.compile(model, precision, threads=2) as engine:
            alone = [engine(request) for request in case.requests]
            for _ in range(6):
                members = random.integers(0, len(alone), random.integers(1, 9)).tolist()
                results = engine.run_batch([case.requests[member] for member in members])
                for member, result in zip(members, results, strict=True):
                    assert_same_bits(result, alone[member])
    return None


def of_files(paths: list[Path]) -> Check:
    """The check of whole model files, against the reference backend on made-up Requests, through the parity gate."""

    def run(subject: Subject, _short: bool) -> Iterator[Outcome]:
        for path in paths:
            yield outcome_of(str(path), lambda path=path: _file(subject, path))  # type: ignore[misc]

    return Check("model files", run, lambda _short: len(paths))


def _file(subject: Subject, path: Path) -> str | None:
    model = hr.load(str(path))
    if refused := _refusal(subject, model):
        return refused
    with subject.compile(model, threads=2) as engine:
        verdict = gate.check(
            model, engine.run_batch, two_requests(model.signature), backend=subject.backend.name,
            options=engine.options, seconds_max=MODEL_S_MAX, compile_=lambda other: subject.compile(other).executable,
        )  # fmt: skip
    return None if verdict.compared else verdict.text


def _count(_short: bool) -> int:
    return len(CASES)


def model_checks(subject: Subject) -> list[Check]:
    """The checks of whole models; how many there are depends on the precisions."""
    precisions = len(subject.capabilities.precisions)
    return [
        Check("models", _answers, lambda short: precisions * _count(short)),
        Check("ragged batches", each_case(_ragged), _count),
        Check("batch invariance", each_case(_invariant), _count),
    ]
