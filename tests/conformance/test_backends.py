"""What every backend promises, checked on every backend that works here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import headrace as hr
from headrace.backend import Backend
from headrace.errors import BackendUnavailable, DtypeMismatch, MissingInput, PlanError, ShapeMismatch, UnknownInput

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, Case

BACKENDS = {name: backend for name, backend in hr.backends().items() if backend.probe().ok}
CASE_CACHE = {name: build() for name, build in CASES.items()}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture(params=sorted(CASE_CACHE))
def case(request: pytest.FixtureRequest) -> Case:
    return CASE_CACHE[request.param]


def compiled(backend: Backend, case: Case, threads: int = 2) -> hr.Engine:
    return hr.load(case.model, name=case.name).compile(backend=backend.name, threads=threads)


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a)


def test_agrees_with_the_onnx_reference_on_the_original_model(backend: Backend, case: Case) -> None:
    reference = ReferenceEvaluator(case.model)
    engine = compiled(backend, case)
    names = [spec.name for spec in engine.signature.outputs]
    for request, result in zip(case.requests, engine.run_batch(case.requests), strict=True):
        for name, expected in zip(names, reference.run(names, request), strict=True):
            assert result[name].dtype == expected.dtype
            np.testing.assert_allclose(result[name], expected, rtol=case.tolerance, atol=case.tolerance)


def test_a_ragged_batch_is_bit_equal_to_single_calls_where_declared(backend: Backend, case: Case) -> None:
    if not (backend.capabilities().ragged and backend.capabilities().batch_invariant):
        pytest.skip(f"{backend.name} does not declare batch invariance")
    engine = compiled(backend, case)
    alone = [engine(request) for request in case.requests]
    order = [*range(len(case.requests)), *reversed(range(len(case.requests)))]
    for index, result in zip(order, engine.run_batch([case.requests[i] for i in order]), strict=True):
        assert same_bits(result, alone[index])


def test_results_do_not_share_memory_with_later_calls(backend: Backend, case: Case) -> None:
    engine = compiled(backend, case)
    first = engine(case.requests[0])
    kept = {name: array.copy() for name, array in first.items()}
    for request in case.requests:
        engine(request)
    assert same_bits(first, kept)


def test_bad_requests_say_what_was_got_and_expected(backend: Backend) -> None:
    engine = compiled(backend, CASE_CACHE["mlp"])
    good = CASE_CACHE["mlp"].requests[0]
    with pytest.raises(MissingInput, match=r"input 'x': got none, expected x: float32\[n, 12\]"):
        engine({})
    with pytest.raises(UnknownInput, match=r"got input 'z', expected only: x"):
        engine({**good, "z": good["x"]})
    with pytest.raises(ShapeMismatch, match=r"got shape \[1, 11\], expected x: float32\[n, 12\]"):
        engine({"x": good["x"][:, :11]})
    with pytest.raises(DtypeMismatch, match=r"got dtype float64, expected float32"):
        engine({"x": good["x"].astype(np.float64)})
    assert engine(good)["y"].shape == (1, 5)


def test_accepts_strided_views_and_empty_batches(backend: Backend) -> None:
    engine = compiled(backend, CASE_CACHE["mlp"])
    wide = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    np.testing.assert_array_equal(engine({"x": wide[:, ::2]})["y"], engine({"x": wide[:, ::2].copy()})["y"])
    assert engine({"x": wide[:0, :12]})["y"].shape == (0, 5)
    assert engine.run_batch([]) == []


def test_refuses_devices_and_precisions_that_are_not_there(backend: Backend) -> None:
    model = hr.load(CASE_CACHE["mlp"].model)
    with pytest.raises(BackendUnavailable, match="got device 'warp:9'"):
        model.compile(backend=backend.name, device="warp:9")
    with pytest.raises(BackendUnavailable, match="got precision 'fp3'"):
        model.compile(backend=backend.name, precision="fp3")


def test_plan_names_what_really_runs(backend: Backend) -> None:
    plan = compiled(backend, CASE_CACHE["mlp"]).plan
    assert plan.backend == backend.name
    assert plan.device == "cpu"
    assert plan.to_dict()["threads"] >= 1
    assert backend.name in str(plan)


def test_a_saved_plan_answers_bit_for_bit_where_plans_can_be_saved(
    backend: Backend, case: Case, tmp_path: Path
) -> None:
    engine = compiled(backend, case)
    if backend.name != "native":
        with pytest.raises(
            PlanError, match=f"backend '{backend.name}' cannot save its Plans, expected backend 'native'"
        ):
            engine.save(tmp_path)
        return
    engine.save(tmp_path)
    loaded = hr.load_plan(tmp_path)
    for request, result in zip(case.requests, loaded.run_batch(case.requests), strict=True):
        assert same_bits(result, engine(request))
