"""What every backend promises, checked on every backend that works here, and that the checks would notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import headrace as hr
from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Request, Result
from headrace.conformance import Outcome, Subject
from headrace.conformance.behaviour import BEHAVIOUR
from headrace.conformance.cases import CASES
from headrace.conformance.models import assert_same_bits, loaded, model_checks
from headrace.conformance.node_tests import NODE_TESTS
from headrace.engine import backend_named
from headrace.errors import PlanError
from headrace.graph.functions import _BODIES

BACKENDS = sorted(name for name, backend in hr.backends().items() if backend.probe().ok)
CHECKS = ("behaviour", "models", "ragged batches", "batch invariance", "ONNX node tests")


def outcomes(backend: Backend, check: str) -> list[Outcome]:
    subject = Subject(backend)
    checks = {one.name: one for one in (BEHAVIOUR, *model_checks(subject), NODE_TESTS)}
    assert tuple(checks) == CHECKS
    found = list(checks[check].run(subject, True))
    assert len(found) == checks[check].size(True)
    return found


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", BACKENDS)
def test_keeps_its_word(name: str, check: str) -> None:
    found = outcomes(backend_named(name), check)
    assert [(one.subject, one.reason) for one in found if one.status == "failed"] == []
    assert any(one.status == "passed" for one in found)
    assert all(one.reason for one in found if one.status == "skipped")


def test_the_cases_hold_every_fused_op() -> None:
    ops = {op.removeprefix("headrace.") for name in CASES for op in outcome_ops(name) if op.startswith("headrace.")}
    assert ops == _BODIES.keys() - {"LayerNormalization", "RMSNormalization", "Gelu"}  # which are ONNX's


def outcome_ops(name: str) -> set[str]:
    return {f"{node.domain}.{node.op_type}" for node in loaded(name)[1].graph.graph}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_saved_plan_answers_bit_for_bit_where_plans_can_be_saved(name: str, case: str, tmp_path: Path) -> None:
    if name != "native" and case != "mlp":
        pytest.skip(f"{name} saves no Plans, whatever the model")
    example, model, _ = loaded(case)
    engine = model.compile(backend=name, threads=2)
    if name != "native":
        with pytest.raises(PlanError, match=f"backend '{name}' cannot save its Plans, expected backend 'native'"):
            engine.save(tmp_path)
        return
    engine.save(tmp_path)
    mapped = hr.load_plan(tmp_path)
    for request, result in zip(example.requests, mapped.run_batch(example.requests), strict=True):
        assert_same_bits(result, engine(request))


# ---- a backend that breaks its word in one way at a time ----


class Sabotaged(Backend):
    """The reference backend, with its answers spoilt."""

    name = "sabotaged"
    contract = 1

    def __init__(self, spoil: Callable[[Spoilt, Sequence[Request]], list[Result]], **declared: object) -> None:
        self._inner = backend_named("reference")
        self._spoil = spoil
        self._declared = {"ragged": True, "batch_invariant": True, "concurrent": True, **declared}

    def probe(self) -> Availability:
        return Availability(True, devices=("cpu",))

    def capabilities(self) -> Capabilities:
        return Capabilities(**self._declared)  # type: ignore[arg-type]

    def unsupported(self, model: hr.Model) -> list[tuple[str, str, str]]:
        return self._inner.unsupported(model)

    def compile(self, model: hr.Model, options: CompileOptions) -> Executable:
        return Spoilt(self._inner.compile(model, options), self._spoil)


class Spoilt(Executable):
    kept: list[np.ndarray] = []  # noqa: RUF012  (this is the leak)

    def __init__(self, inner: Executable, spoil: Callable[[Spoilt, Sequence[Request]], list[Result]]) -> None:
        from dataclasses import replace

        self.plan = replace(inner.plan, backend="sabotaged")
        self.inner = inner
        self._spoil = spoil

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        return self._spoil(self, requests)

    def right(self, requests: Sequence[Request]) -> list[Result]:
        return self.inner.run_batch(requests)


def swapped(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    return self.right(requests)[::-1]


def one_element_off(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    results = self.right(requests)
    for array in results[-1].values():
        if array.size and array.dtype.kind == "f":
            array.flat[-1] += 1
    return results


def by_batch_size(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    results = self.right(requests)
    for result in results if len(requests) > 2 else ():
        for name, array in result.items():
            if array.dtype == np.float32:
                result[name] = np.nextafter(array, np.float32(1e9))
    return results


def shared(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    results = self.right(requests)
    buffer = vars(self).setdefault("buffer", np.zeros(100_000, np.float32))
    for result in results:
        for name, array in result.items():
            if array.dtype == np.float32:
                result[name] = buffer[: array.size].reshape(array.shape)
                result[name][...] = array
    return results


def leaking(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    Spoilt.kept.append(np.ones(1 << 20, np.float32))
    return self.right(requests)


def wrong_under_threads(self: Spoilt, requests: Sequence[Request]) -> list[Result]:
    import time

    vars(self)["request"] = requests[0]
    time.sleep(0.001)
    mine = [vars(self)["request"], *requests[1:]]
    return self.right(mine)


@pytest.mark.parametrize(
    ("spoil", "check", "subject"),
    [
        (swapped, "ragged batches", "mlp"),
        (one_element_off, "models", "attention in fp32"),
        (one_element_off, "ONNX node tests", None),
        (by_batch_size, "batch invariance", "mlp"),
        (shared, "behaviour", "owns no memory of its callers, nor they of it"),
        (leaking, "behaviour", "keeps no memory, threads or files when closed"),
        (wrong_under_threads, "behaviour", "answers four threads at once"),
    ],
)
def test_a_broken_word_is_noticed(
    spoil: Callable[[Spoilt, Sequence[Request]], list[Result]], check: str, subject: str | None
) -> None:
    found = outcomes(Sabotaged(spoil), check)
    failed = {one.subject for one in found if one.status == "failed"}
    Spoilt.kept.clear()
    assert failed
    assert subject is None or subject in failed
    if check == "behaviour":
        assert failed == {subject}


def test_what_is_not_declared_is_skipped_with_that_reason() -> None:
    modest = Sabotaged(Spoilt.right, batch_invariant=False)
    assert {one.reason for one in outcomes(modest, "batch invariance")} == {"batch_invariant is not declared"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_of_ops_that_only_look_elsewhere_are_the_callers_own(backend: str) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], num_outputs=2), helper.make_node("Identity", ["t"], ["c"])]
    table = numpy_helper.from_array(np.ones(3, np.float32), "t")
    outputs = [value(name, TensorProto.FLOAT, [3]) for name in "abc"]
    graph = helper.make_graph(nodes, "views", [value("x", TensorProto.FLOAT, [6])], outputs, [table])
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    x = np.arange(6, dtype=np.float32)
    with model.compile(backend=backend) as engine:
        for array in engine({"x": x}).values():
            array += 1
        np.testing.assert_array_equal(x, np.arange(6, dtype=np.float32))
        np.testing.assert_array_equal(engine({"x": x})["c"], np.ones(3, np.float32))
