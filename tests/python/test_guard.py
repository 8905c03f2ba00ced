"""What stands between an Engine and a Backend: nothing undeclared goes in, nothing unfit comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import headrace as hr
from headrace import discovery
from headrace.backend import Availability, Backend, Capabilities, CompileOptions, Executable, Plan, Request, Result
from headrace.discovery import Source
from headrace.errors import BackendUnavailable, ExecutionError, InvalidModel, UnsupportedOp
from headrace.guard import compile_on

Run = Callable[[Sequence[Request]], list[Result]]


def double(requests: Sequence[Request]) -> list[Result]:
    return [{"y": request["x"] * 2} for request in requests]


class Fake(Executable):
    def __init__(self, run: Run) -> None:
        self.plan = Plan("fake", "cpu", "none", "fp32", 1)
        self._run = run
        self.closed = 0

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        return self._run(requests)

    def close(self) -> None:
        self.closed += 1


class FakeBackend(Backend):
    name = "fake"
    contract = 1

    def __init__(self, run: Run = double, **declared: object) -> None:
        self._run = run
        self._declared = Capabilities(**declared)  # type: ignore[arg-type]
        self.compiled: list[CompileOptions] = []
        self.error: Exception | None = None

    def probe(self) -> Availability:
        return Availability(True, devices=("cpu", "npu:0"), missing={"cuda": "no driver here; install one"})

    def capabilities(self) -> Capabilities:
        return self._declared

    def unsupported(self, model: hr.Model) -> list[tuple[str, str, str]]:
        return []

    def compile(self, model: hr.Model, options: CompileOptions) -> Executable:
        if self.error is not None:
            raise self.error
        self.compiled.append(options)
        return Fake(self._run)


@pytest.fixture(scope="module")
def model() -> hr.Model:
    node = helper.make_node("Add", ["x", "x"], ["y"], name="twice")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y])
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), name="twice")


def requests(*shapes: tuple[int, int]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full(shape, index, np.float32)} for index, shape in enumerate(shapes)]


SHAPES = ((1, 2), (3, 4), (1, 2), (3, 4), (5, 6))


def test_a_backend_that_is_not_ragged_sees_batches_of_one_shape_and_order_is_kept(model: hr.Model) -> None:
    seen: list[list[tuple[int, ...]]] = []

    def run(batch: Sequence[Request]) -> list[Result]:
        seen.append([request["x"].shape for request in batch])
        return double(batch)

    results = compile_on(FakeBackend(run), model, CompileOptions()).run_batch(requests(*SHAPES))
    assert sorted(seen) == [[(1, 2)] * 2, [(3, 4)] * 2, [(5, 6)]]
    assert [result["y"].flat[0] for result in results] == [0, 2, 4, 6, 8]
    assert [result["y"].shape for result in results] == list(SHAPES)
    seen.clear()
    compile_on(FakeBackend(run, ragged=True), model, CompileOptions()).run_batch(requests(*SHAPES))
    assert seen == [list(SHAPES)]


@pytest.mark.parametrize(("concurrent", "most"), [(False, 1), (True, 4)])
def test_calls_overlap_only_where_that_is_declared(model: hr.Model, concurrent: bool, most: int) -> None:
    lock, inside, peaks = threading.Lock(), [0], [0]
    gate = threading.Barrier(4, timeout=10)

    def run(batch: Sequence[Request]) -> list[Result]:
        with lock:
            inside[0] += 1
            peaks[0] = max(peaks[0], inside[0])
        if concurrent:
            gate.wait()
        else:
            time.sleep(0.01)
        with lock:
            inside[0] -= 1
        return double(batch)

    executable = compile_on(FakeBackend(run, concurrent=concurrent), model, CompileOptions())
    threads = [threading.Thread(target=executable.run_batch, args=(requests((1, 1)),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peaks[0] == most


def test_undeclared_ops_and_dtypes_never_reach_the_backend(model: hr.Model) -> None:
    backend = FakeBackend(ops=frozenset({"Relu"}))
    with pytest.raises(UnsupportedOp, match=r"Add \(node 'twice'\): the backend does not declare this op"):
        compile_on(backend, model, CompileOptions())
    backend = FakeBackend(dtypes=frozenset({"float64"}))
    with pytest.raises(UnsupportedOp, match="got a value of dtype float32, expected one of float64"):
        compile_on(backend, model, CompileOptions())
    assert not backend.compiled
    compile_on(FakeBackend(ops=frozenset({"Add"}), dtypes=frozenset({"float32"})), model, CompileOptions())


def test_undeclared_options_never_reach_the_backend(model: hr.Model) -> None:
    backend = FakeBackend()
    with pytest.raises(BackendUnavailable, match="got precision 'int8', expected fp32"):
        compile_on(backend, model, CompileOptions(precision="int8"))
    with pytest.raises(BackendUnavailable, match=r"got device 'warp:9', expected one of cpu, npu:0$"):
        compile_on(backend, model, CompileOptions(device="warp:9"))
    with pytest.raises(BackendUnavailable, match=r"got device 'cuda:1', .* \(no driver here; install one\)"):
        compile_on(backend, model, CompileOptions(device="cuda:1"))
    with pytest.raises(BackendUnavailable, match="got winograd=True, expected False"):
        compile_on(backend, model, CompileOptions(winograd=True))
    assert not backend.compiled
    compile_on(backend, model, CompileOptions(device="npu"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda batch: [][0], "failed: IndexError"),
        (lambda batch: [], "got 0 Results, expected 1"),
        (lambda batch: [{"z": request["x"]} for request in batch], r"got a Result \{'z': 'float32'\}, expected \{'y'"),
        (lambda batch: [{"y": request["x"].astype(np.float64)} for request in batch], "'y': 'float64'"),
        (lambda batch: [{"y": request["x"].tolist()} for request in batch], "'y': \"<class 'list'>\""),
    ],
)
def test_what_does_not_fit_the_contract_is_an_execution_error(model: hr.Model, run: Run, message: str) -> None:
    with pytest.raises(ExecutionError, match=f"backend 'fake'.*{message}"):
        compile_on(FakeBackend(run), model, CompileOptions()).run_batch(requests((1, 1)))


def test_a_failure_to_compile_is_typed_and_ours_pass_unchanged(model: hr.Model) -> None:
    backend = FakeBackend()
    backend.error = ZeroDivisionError("oops")
    with pytest.raises(ExecutionError, match="'fake' failed to compile model 'twice': ZeroDivisionError: oops"):
        compile_on(backend, model, CompileOptions())
    backend.error = InvalidModel("that")
    with pytest.raises(InvalidModel, match=r"^that$"):
        compile_on(backend, model, CompileOptions())


@pytest.mark.parametrize("how", [{"backend": "auto"}, {"backend": "native", "fallback": ["spare"]}])
def test_nothing_falls_back_from_a_defect_only_from_what_is_not_there(
    model: hr.Model, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    first, spare = FakeBackend(), FakeBackend()
    first.name, spare.name = "native", "spare"
    loaders: dict[str, Any] = {"native": lambda: lambda: first, "spare": lambda: lambda: spare}
    sources = {name: Source("a test", loader) for name, loader in loaders.items()}
    monkeypatch.setattr(discovery, "sources", lambda: sources)
    first.error = TypeError("a wrong call")
    with pytest.raises(ExecutionError, match=r"backend 'native' failed to compile .* TypeError: a wrong call"):
        model.compile(**how)
    assert not spare.compiled
    first.error = BackendUnavailable("no driver")
    model.compile(**how)
    assert spare.compiled


def test_closing_happens_once_and_ends_calls(model: hr.Model) -> None:
    executable = compile_on(FakeBackend(), model, CompileOptions())
    executable.close()
    executable.close()
    assert executable.inner.closed == 1  # type: ignore[attr-defined]
    with pytest.raises(ExecutionError, match=r"got a Batch after close\(\)"):
        executable.run_batch(requests((1, 1)))
