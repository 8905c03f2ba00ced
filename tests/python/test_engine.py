"""Engines: how a backend is chosen, and what the choice says of itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from onnx import TensorProto, helper

import headrace as hr
from headrace.errors import (
    BackendUnavailable,
    ConfigError,
    DtypeMismatch,
    HeadraceError,
    InvalidModel,
    MalformedRequest,
    MissingInput,
    UnknownInput,
    UnsupportedOp,
)
from headrace.threads import checked_threads


def model_of(*nodes: tuple[str, list[str], list[str]], dtype: int = TensorProto.FLOAT) -> hr.Model:
    """A model from x to y out of (op, inputs, outputs) triples."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, name=f"{op.lower()}_node") for op, inputs, outputs in nodes],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 4])],
        [helper.make_tensor_value_info("y", dtype, ["n", 4])],
    )
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), name="small")


def test_auto_takes_native_and_says_so() -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile()
    assert engine.plan.backend == "native"
    assert "native can run the whole model" in str(engine.plan)


def test_auto_goes_on_openly_where_native_cannot() -> None:
    # The native runtime has no kernel for Det; the plan says whom it asked and why they refused.
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="det_node")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    engine = model.compile()
    assert engine.plan.backend == "reference"
    assert "not native" in str(engine.plan)
    assert "Det" in str(engine.plan)
    assert engine({"x": np.eye(3, dtype=np.float32) * 2})["y"] == pytest.approx(8.0)
    with pytest.raises(UnsupportedOp, match=r"Det \(node 'det_node'\)"):
        model.compile(backend="native")


def test_every_unsupported_node_is_listed_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["z"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 3]) for name in ("x", "z")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    with pytest.raises(UnsupportedOp) as caught:
        model.compile(backend="native")
    assert [(op, name) for op, name, _ in caught.value.nodes] == [("Det", "first"), ("Det", "second")]


def test_an_unknown_backend_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(BackendUnavailable, match=r"got backend 'tpu', expected one of: auto, .*native"):
        model_of(("Relu", ["x"], ["y"])).compile(backend="tpu")


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: got 0, expected an integer from 1 to"),
        ({"threads": -1}, "threads: got -1, expected an integer from 1 to"),
        ({"threads": "2"}, "threads: got '2', expected an integer from 1 to"),
        ({"threads": True}, "threads: got True, expected an integer from 1 to"),
        ({"threads": 100_000}, "threads: got 100000, expected an integer from 1 to"),
        ({"precision": "fp23"}, "got precision 'fp23', expected one of fp32, bf16, int8, auto"),
        ({"precision": None}, "precision: got None, expected text"),
        ({"device": 1}, "device: got 1, expected text or None"),
        ({"options": {"mode": 1}}, r"options\['mode'\]: got 1, expected text"),
        ({"fallback": "torch"}, r"got fallback 'torch', expected a list of backends' names: \['torch'\]"),
        ({"tolerance": -1}, "got tolerance -1, expected a number of 0 or more"),
        ({"tolerance": float("nan")}, "got tolerance nan, expected a number of 0 or more"),
        ({"samples": []}, "got no samples, expected at least one request, or None"),
        ({"samples": {"x": np.zeros(3)}}, "got a dict for samples, expected a list of requests"),
    ],
)
def test_an_option_that_no_backend_could_mean_is_refused_before_one_is_asked(
    options: dict[str, object], message: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(("Relu", ["x"], ["y"]))
    monkeypatch.setattr("headrace.engine.compile_lowered", lambda *_: pytest.fail("a backend was asked"))
    with pytest.raises(ConfigError, match=message):
        model.compile(backend=backend, **options)  # type: ignore[arg-type]


def test_a_number_of_threads_may_be_numpys_and_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile(threads=np.int64(2))  # type: ignore[arg-type]
    assert type(engine.plan.threads) is int
    monkeypatch.setattr("headrace.hardware.usable_cores", lambda: 500)
    assert checked_threads(2000) == 2000
    with pytest.raises(ConfigError, match="got 2001, expected an integer from 1 to 2000"):
        checked_threads(2001)


def test_auto_takes_no_other_backend_because_of_a_wrong_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(("Relu", ["x"], ["y"]))
    monkeypatch.setenv("HEADRACE_ISA", "avx9000")
    with pytest.raises(BackendUnavailable, match=r"^HEADRACE_ISA: got 'avx9000'"):
        model.compile()


_X = np.ones((2, 4), np.float32)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (_X, MalformedRequest, r"request: got a ndarray, expected a dict of arrays: x: float32\[n, 4\]"),
        (None, MalformedRequest, "request: got None, expected a dict of arrays"),
        ("x", MalformedRequest, "request: got a str, expected a dict of arrays"),
        ({"x": None}, DtypeMismatch, r"input 'x': got None, expected x: float32\[n, 4\]"),
        ({"X": _X}, MissingInput, r"inputs: got 'X', expected x: float32\[n, 4\]"),
        ({"x": _X, "z": _X}, UnknownInput, "inputs: got 'z', expected only: x"),
        ({"x": [[1.0] * 4]}, DtypeMismatch, r"got dtype float64, expected float32: a list .*numpy\.asarray\("),
    ],
)
def test_what_is_no_request_is_told_by_an_error_of_ours(
    request_: object, kind: type[HeadraceError], message: str, backend: str
) -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile(backend=backend)
    with hr.Batcher(engine) as batcher:
        ways = [
            engine,
            engine.check,
            lambda one: engine.run_batch([{"x": _X}, one]),
            batcher.submit,
            lambda one: asyncio.run(batcher.infer(one)),
        ]
        for way in ways:
            with pytest.raises(kind, match=message) as caught:
                way(request_)  # type: ignore[operator]
            assert type(caught.value) is kind


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_batch_is_a_sequence_of_mappings_of_any_kind(backend: str) -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile(backend=backend)
    for wrong, got in (({"x": _X}, "a dict"), (_X, "a ndarray"), (None, "None")):
        with pytest.raises(MalformedRequest, match=f"run_batch: got {got}, expected a sequence of requests"):
            engine.run_batch(wrong)  # type: ignore[arg-type]
    mapping = MappingProxyType({"x": _X})
    np.testing.assert_array_equal(engine(mapping)["y"], _X)
    np.testing.assert_array_equal(engine.run_batch([{"x": _X}, mapping])[1]["y"], _X)


def test_a_batcher_is_given_an_engine() -> None:
    with pytest.raises(ConfigError, match="Batcher: got NoneType for engine, expected an Engine"):
        hr.Batcher(None)  # type: ignore[arg-type]


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"got a folder, expected an \.onnx file"):
        hr.load(tmp_path)


def test_anything_array_like_is_taken() -> None:
    class Wrapped:
        def __init__(self, array: np.ndarray) -> None:
            self._array = array

        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return self._array

    x = np.array([[-1, 2, -3, 4]], dtype=np.float32)
    engine = model_of(("Relu", ["x"], ["y"])).compile(backend="native")
    np.testing.assert_array_equal(engine({"x": Wrapped(x)})["y"], np.maximum(x, 0))


def test_a_forced_isa_the_cpu_lacks_fails_loudly() -> None:
    code = "from headrace import _core; _core.selected_isa()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"HEADRACE_ISA": "avx9000", "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "HEADRACE_ISA: got 'avx9000', expected one this CPU can run: reference" in done.stderr


def test_import_and_native_inference_need_neither_torch_nor_ray() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["ray"] = None  # importing either raises
import numpy as np, headrace as hr
from onnx import TensorProto, helper
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])
engine = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)).compile()
assert engine.plan.backend == "native"
print(engine({"x": np.array([-1, 1], np.float32)})["y"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 1.0]"


def test_public_names_are_what_they_are() -> None:
    assert hr.__all__ == [
        "Batcher", "Engine", "HeadraceError", "Model", "Plan", "Signature", "TensorSpec", "backends", "errors",
        "hardware", "load", "load_plan", "plan", "serve",
    ]  # fmt: skip
    for name in set(hr.__all__) - {"serve"}:  # which needs ray
        assert getattr(hr, name) is not None


def test_large_results_belong_to_the_caller() -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile()
    requests = [{"x": np.full((rows, 4), rows, np.float32)} for rows in (20_000, 300_000, 20_000, 3)]
    results = [engine(request)["y"] for request in requests]
    del engine
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(result, request["x"])
        assert result.flags.writeable
    results[0][:] = -1  # what the caller does to one Result touches no other
    np.testing.assert_array_equal(results[2], requests[2]["x"])


def test_outputs_that_share_storage_in_the_graph_are_apart_in_the_result() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Reshape", ["y", "flat"], ["z"]),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["m"]),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 4]),
        ],
        [helper.make_tensor("flat", TensorProto.INT64, [1], [-1])],
    )
    model = hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    x = np.ones((20_000, 4), np.float32)
    result = model.compile(backend="native")({"x": x})
    result["y"][:] = 5
    np.testing.assert_array_equal(result["z"], 1)
    np.testing.assert_array_equal(x, 1)
    np.testing.assert_array_equal(result["same"], x)
    result["same"][:] = 7
    np.testing.assert_array_equal(x, 1)


def test_backends_can_be_listed_again_after_they_were_imported() -> None:
    assert list(hr.backends()) == list(hr.backends())


def test_options_that_a_backend_does_not_have_are_refused() -> None:
    with pytest.raises(BackendUnavailable, match="backend 'native': got option 'speed', expected cublaslt"):
        model_of(("Relu", ["x"], ["y"])).compile(backend="native", options={"speed": "warp"})


def test_an_array_of_objects_is_told_what_it_should_be() -> None:
    engine = model_of(("Relu", ["x"], ["y"])).compile(backend="native")
    spec = engine.signature.inputs[0]
    objects = np.ones([2 if isinstance(dim, str) else dim for dim in spec.dims], dtype=object)
    for call in (engine, lambda request: engine.run_batch([request])):
        with pytest.raises(DtypeMismatch, match=r"input 'x': got dtype object, expected x: float32\[.*dtype='float32'"):
            call({"x": objects})
