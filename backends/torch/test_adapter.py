"""The torch backend beyond what every backend promises: compiled, captured, in bfloat16, and on tensors as they are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from headrace.backends.torch import adapter, executable, graphs
from headrace.backends.torch.executable import Mover, array_of, tensor_of
from headrace.backends.torch.graphs import Captured, Graphs
from onnx import TensorProto, helper, numpy_helper

import headrace as hr
from headrace.backend import CompileOptions, Executable, Plan, Request, Result
from headrace.conformance.models import assert_close, loaded
from headrace.device_arrays import is_on_device
from headrace.errors import BackendUnavailable, DtypeMismatch, ShapeMismatch

CUDA = torch.cuda.is_available()


def test_a_compiled_model_agrees_with_the_onnx_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of torch.compile but the C++ compiler at its end, which takes longer than all other tests here.
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **more: real(run, backend="aot_eager", **more))
    case, model, expected = loaded("gelu_block")
    engine = model.compile(backend="torch", threads=1, options={"mode": "compile"})
    assert "torch.compile made its kernels, for Requests of any shape" in str(engine.plan)
    for result, want in zip(engine.run_batch(case.requests), expected, strict=True):
        assert_close(result, want, 2 * case.tolerance)


def test_a_compiler_that_fails_says_so_when_the_model_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise OSError("no g++")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **more: real(run, backend=broken, **more))
    with pytest.raises(BackendUnavailable, match=r"(?s)torch.compile failed on model 'mlp'.*no g\+\+"):
        loaded("mlp")[1].compile(backend="torch", options={"mode": "compile"})


def test_bfloat16_products_and_float32_between_them() -> None:
    case, model, expected = loaded("gelu_block")
    engine = model.compile(backend="torch", precision="bf16")
    (result, *_), (want, *_) = engine.run_batch(case.requests), expected
    error = np.abs(result["y"] - want["y"]).max()
    assert 1e-4 < error < 0.05  # lower, and not much
    assert "in bf16" in str(engine.plan)


# ---- CUDA graphs: the logic, with a capture that re-runs into the same tensors, as a graph does ----


def capture_by_rerunning(log: list[tuple[int, ...]]) -> Callable[..., Captured]:
    def capture(run: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]) -> Captured:
        held = tuple(torch.zeros_like(tensor) for tensor in inputs)
        outputs = tuple(output.clone() for output in run(*held))
        log.append(tuple(inputs[0].shape))

        def replay() -> None:
            for output, fresh in zip(outputs, run(*held), strict=True):
                output.copy_(fresh)

        return Captured(held, outputs, replay)

    return capture


def test_a_shape_is_captured_once_and_results_are_nobody_elses() -> None:
    log: list[tuple[int, ...]] = []
    run = Graphs(lambda x: (x * 2, x + 1), capture_by_rerunning(log))
    first = run(torch.ones(3))
    second = run(torch.full((3,), 5.0))
    run(torch.ones(4))
    assert log == [(3,), (4,)]
    assert first[0].tolist() == [2, 2, 2]  # not what the second replay wrote
    assert (second[0].tolist(), second[1].tolist()) == ([10, 10, 10], [6, 6, 6])


def test_graphs_used_longest_ago_are_given_up() -> None:
    log: list[tuple[int, ...]] = []
    run = Graphs(lambda x: (x,), capture_by_rerunning(log))
    for length in range(1, graphs.GRAPHS_MAX + 1):
        run(torch.ones(length))
    run(torch.ones(1))  # used again
    run(torch.ones(100))  # takes the place of length 2
    assert len(run) == graphs.GRAPHS_MAX
    log.clear()
    run(torch.ones(1))
    run(torch.ones(2))
    assert log == [(2,)]


def test_a_mover_repeats_what_it_remembered() -> None:
    mover = Mover(torch.device("cpu"))
    mover.remember()
    first = [mover(torch.tensor([n])) for n in (1, 2)]
    kept = mover.repeat()
    assert [mover(torch.tensor([7])), mover(torch.tensor([8]))] == first
    assert kept == first
    mover.forget()
    assert mover(torch.tensor([7])).item() == 7


def test_each_plan_runs_on_its_own_threads_whatever_was_compiled_or_ran_since() -> None:
    before = torch.get_num_threads()
    case, model, _ = loaded("mlp")
    engines = [model.compile(backend="torch", device="cpu", threads=threads) for threads in (1, 3)]
    seen: list[tuple[str, int]] = []

    def run(where: str) -> None:
        for engine in (*engines, *engines):
            engine(case.requests[0])
            seen.append((where, torch.get_num_threads()))

    thread = threading.Thread(target=run, args=("beside",))  # torch counts threads by thread
    thread.start()
    thread.join()
    run("here")
    torch.set_num_threads(before)
    assert seen == [(where, threads) for where in ("beside", "here") for threads in (1, 3, 1, 3)]


def test_options_take_only_their_values() -> None:
    for name in ("mode", "outputs"):
        with pytest.raises(BackendUnavailable, match=f"got option '{name}' 'warp', expected one of"):
            loaded("mlp")[1].compile(backend="torch", options={name: "warp"})


def test_a_batch_runs_with_its_device_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Streams and captured graphs are those of the current device, wherever the tensors are.
    log: list[str] = []

    @contextlib.contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        log.append(f"enter {device}")
        yield
        log.append(f"leave {device}")

    case, model, _ = loaded("mlp")
    compiled = cast(Any, model.compile(backend="torch", device="cpu").executable).inner
    run = compiled._run_script

    def logged(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log.append("run")
        return cast(tuple[torch.Tensor, ...], run(*given))

    compiled._run_script = logged
    compiled.run_batch(case.requests[:1])
    assert log == ["run"]
    log.clear()
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(executable, "tensor_of", lambda value, _device: torch.from_numpy(value))
    compiled._device = torch.device("cuda:1")
    compiled.run_batch(case.requests[:1])
    assert log == ["enter cuda:1", "run", "leave cuda:1"]


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(BackendUnavailable, match="got option mode='cudagraphs', expected a CUDA device"):
        loaded("mlp")[1].compile(backend="torch", device="cpu", options={"mode": "cudagraphs"})


@pytest.mark.skipif(not CUDA, reason="no CUDA device here")
@pytest.mark.parametrize("name", ["gelu_block", "attention", "convolution", "shape_arithmetic"])
def test_captured_models_agree_with_the_onnx_reference(name: str) -> None:
    case, model, expected = loaded(name)
    engine = model.compile(backend="torch", device="cuda", options={"mode": "cudagraphs"})
    for _ in range(2):
        for result, want in zip(engine.run_batch(case.requests), expected, strict=True):
            assert_close(result, want, 1e-4)


# ---- tensors in and out ----


def test_tensors_go_in_and_stay_tensors_where_that_is_asked_for() -> None:
    case, model, expected = loaded("mlp")
    engine = model.compile(backend="torch", options={"outputs": "device"})
    result = engine({"x": torch.from_numpy(case.requests[1]["x"])})
    assert isinstance(result["y"], torch.Tensor)
    assert_close({"y": np.from_dlpack(result["y"])}, expected[1], case.tolerance)
    assert isinstance(model.compile(backend="torch")(case.requests[0])["y"], np.ndarray)


def small(*nodes: object) -> hr.Model:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
    )
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize("where", ["host", "device"])
def test_results_share_no_memory_with_inputs(where: str) -> None:
    x = torch.ones(2, 4)
    engine = small(helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["y"])).compile(
        backend="torch", device="cpu", options={"outputs": where}
    )
    engine({"x": x})["y"][:] = 5
    assert (x == 1).all()


@pytest.mark.parametrize("where", ["host", "device"])
def test_results_are_no_views_of_weights(where: str) -> None:
    # Bounds that only the Request knows keep the view from being computed when the model is loaded.
    table = numpy_helper.from_array(np.ones((6, 4), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Slice", ["table", "from", "to"], ["y"])],
        "rows",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("from", "to")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", 4])],
        [table],
    )
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    engine = model.compile(backend="torch", device="cpu", options={"outputs": where})
    rows = {"from": np.array([1]), "to": np.array([3])}
    engine(rows)["y"][:] = 5
    assert (np.from_dlpack(engine(rows)["y"]) == 1).all()


def test_bfloat16_arrays_are_taken_and_given_bit_for_bit() -> None:
    import ml_dtypes

    array = np.array([1.5, -2, np.inf], ml_dtypes.bfloat16)
    tensor = tensor_of(array, torch.device("cpu"))
    assert tensor.dtype == torch.bfloat16
    assert array_of(tensor).tobytes() == array.tobytes()


class OnDevice:
    """An array that says it lies on a CUDA device."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, f"torch.{array.dtype}"

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise AssertionError("was brought to the host")


class Recorder(Executable):
    """Says what it was given."""

    device_arrays = True

    def __init__(self) -> None:
        self.plan = Plan("recorder", "cuda:0", "none", "fp32", 1)
        self.seen: list[Request] = []

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        self.seen += requests
        return [{} for _ in requests]


def test_arrays_on_a_device_reach_the_backend_checked_and_untouched() -> None:
    model, recorder = loaded("mlp")[1], Recorder()
    engine = hr.Engine(model.signature, recorder, options=CompileOptions())
    x = OnDevice(np.ones((3, 12), np.float32))
    assert is_on_device(x)
    engine({"x": x})  # type: ignore[dict-item]
    assert recorder.seen[0]["x"] is x
    with pytest.raises(ShapeMismatch, match=r"input 'x': got shape \[3, 11\], expected x: float32\[n, 12\]"):
        engine({"x": OnDevice(np.ones((3, 11), np.float32))})  # type: ignore[dict-item]
    with pytest.raises(DtypeMismatch, match="input 'x': got dtype float64, expected float32"):
        engine({"x": OnDevice(np.ones((3, 12)))})  # type: ignore[dict-item]


def test_a_device_that_is_not_there_comes_with_the_reason() -> None:
    if CUDA:
        pytest.skip("there is a CUDA device here")
    with pytest.raises(BackendUnavailable, match="got device 'cuda'"):
        loaded("mlp")[1].compile(backend="torch", device="cuda")
    assert adapter.TorchBackend().probe().missing["cuda"].startswith(f"torch {torch.__version__}")
