"""The array backend on every library that is here: numpy, the array API's own strict checker, and cupy on a GPU.

array_api_strict has what the standard has and nothing else, and its arrays mix with no others: it stands for a device,
so what it runs uses no function that only numpy has and leaves no shape on the wrong side.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
from headrace.backends.cupy import adapter, ops
from headrace.backends.cupy.adapter import ArrayExecutable, CupyBackend
from headrace.backends.cupy.arrays import to_numpy
from onnx import TensorProto, helper

import headrace as hr
from headrace.backend import CompileOptions, Plan
from headrace.conformance.cases import CASES
from headrace.conformance.models import assert_close, loaded
from headrace.conformance.node_tests import _array, _compare, node_tests
from headrace.errors import BackendUnavailable, ExecutionError
from headrace.graph.script import HOST, Script

DEVICES = CupyBackend().probe().devices
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIBRARIES = ["numpy", "array_api_strict", *(["cupy"] if DEVICES[0] != "cpu" else [])]

# Of ONNX's node tests, which take half a minute together.
EVERY = 7


def on_strict(model: hr.Model) -> ArrayExecutable:
    """The model with array_api_strict in the place of a device."""
    import array_api_strict

    def put(array: np.ndarray) -> object:
        return array if array.dtype == object else array_api_strict.asarray(array)

    written = Script(model.graph, ops.translate, lambda a, where: a if where == HOST else put(a), move=put)
    names = ([spec.name for spec in model.signature.inputs], [spec.name for spec in model.signature.outputs])
    return ArrayExecutable(Plan("cupy", "cpu", "array_api_strict", "fp32", 1), written, names, put, to_numpy)


@pytest.fixture(params=LIBRARIES)
def compiled(request: pytest.FixtureRequest) -> Callable[[hr.Model], ArrayExecutable]:
    """Compiles a model for one library."""
    if request.param == "array_api_strict":
        return on_strict
    device = "cpu" if request.param == "numpy" else DEVICES[0]
    return lambda model: CupyBackend().compile(model, CompileOptions(device=device, threads=1))


@pytest.mark.parametrize("name", sorted(CASES))
def test_models_agree_with_the_onnx_reference(compiled: Callable[[hr.Model], ArrayExecutable], name: str) -> None:
    case, model, expected = loaded(name)
    if refused := CupyBackend().unsupported(model):
        pytest.skip(f"refused: {refused[0][0]}, {refused[0][2]}")
    for result, want in zip(compiled(model).run_batch(case.requests), expected, strict=True):
        assert_close(result, want, case.tolerance)


def example(folder: str) -> ModuleType:
    """An example's script, imported."""
    spec = importlib.util.spec_from_file_location(f"cupy_example_{folder}", EXAMPLES / folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_models_agree_with_what_made_them(compiled: Callable[[hr.Model], ArrayExecutable]) -> None:
    import torch

    credit, digits = example("credit"), example("digits")
    train, test = credit.split(credit.customers())
    trees = credit.train_trees(train, trees=8)
    request = {name: rows[:50] for name, rows in credit.trees_request(test).items()}
    (result,) = compiled(hr.load(trees)).run_batch([request])
    expected = hr.load(trees).compile(backend="reference")(request)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-5, atol=1e-6)

    pipeline = credit.train_pipeline(train)
    request = {name: rows[:50] for name, rows in credit.pipeline_request(test).items()}
    model = hr.load(pipeline)
    (result,) = compiled(model).run_batch([request])
    expected = model.compile(backend="reference")(request)
    for name, values in expected.items():
        if values.dtype == object:
            assert result[name].tolist() == values.tolist()
        else:
            np.testing.assert_allclose(result[name], values, rtol=1e-5, atol=1e-6)

    x, y = digits.images()
    network = digits.train(x[:100], y[:100])
    images = torch.from_numpy(x[:3])
    model = hr.load(network, example_inputs=(images,), input_names=["image"])
    (result,) = compiled(model).run_batch([{model.signature.inputs[0].name: x[:3]}])
    with torch.inference_mode():
        np.testing.assert_allclose(*result.values(), network(images).numpy(), rtol=1e-4, atol=1e-5)


def test_onnx_node_tests_are_right_on_the_standard_alone() -> None:
    # Every so manieth; all of them on numpy: headrace certify cupy
    wrong, passed = [], 0
    for test in node_tests()[::EVERY]:
        try:
            model = hr.load(test.model)
        except hr.HeadraceError:
            continue
        half = any(value.dtype == ir.DataType.FLOAT16 for node in model.graph.graph for value in node.outputs)
        if half or CupyBackend().unsupported(model):  # float16 is no part of the standard
            continue
        executable = on_strict(model)
        for inputs, expected in test.data_sets:
            try:
                names = [spec.name for spec in model.signature.inputs]
                (result,) = executable.run_batch([dict(zip(names, map(np.asarray, map(_array, inputs)), strict=True))])
                for want, spec in zip(expected, model.signature.outputs, strict=True):
                    _compare(result[spec.name], _array(want), test.rtol, test.atol)
                passed += 1
            except (hr.HeadraceError, AssertionError) as error:
                wrong.append(f"{test.name}: {error}")
    assert wrong == []
    assert passed > 100


def small(*nodes: object, dtype: int = TensorProto.FLOAT) -> hr.Model:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", dtype, ["n", 4])],
        [helper.make_tensor_value_info("y", dtype, ["a", "b"])],
    )
    return hr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_results_share_no_memory_with_inputs_or_weights() -> None:
    x = np.ones((2, 4), np.float32)
    turned = small(helper.make_node("Transpose", ["x"], ["y"])).compile(backend="cupy", device="cpu")
    result = turned({"x": x})["y"]
    result[:] = 5
    assert (x == 1).all()


def test_products_run_on_the_threads_of_their_plan_whatever_was_compiled_or_ran_since() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="numpy's BLAS takes no orders without it")

    def limits() -> list[int]:
        found = threadpoolctl.threadpool_info()  # scipy's, too, where another test has imported it
        return [one["num_threads"] for one in found if one["user_api"] == "blas" and "numpy" in one["filepath"]]

    before, (case, model, _) = limits(), loaded("mlp")
    with threadpoolctl.threadpool_limits(user_api="blas"):
        engines = [model.compile(backend="cupy", device="cpu", threads=threads) for threads in (1, 2)]
        for engine in (*engines, *engines):
            engine(case.requests[0])
            assert limits() == [engine.plan.threads] * len(before)


def test_a_failing_node_is_named() -> None:
    model = small(helper.make_node("Add", ["x", "x"], ["s"], name="sum"), helper.make_node("Transpose", ["s"], ["t"]),
                  helper.make_node("MatMul", ["s", "s"], ["y"], name="product"))  # fmt: skip
    engine = model.compile(backend="cupy", device="cpu")
    with pytest.raises(ExecutionError, match=r"MatMul 'product' failed in numpy"):
        engine({"x": np.ones((3, 4), np.float32)})


def test_without_a_gpu_the_plan_says_numpy_and_asking_for_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_devices", lambda: ([], "cupy is not installed"))
    assert CupyBackend().probe().devices == ("cpu",)
    model = small(helper.make_node("Relu", ["x"], ["y"]))
    plan = model.compile(backend="cupy").plan
    assert (plan.device, plan.isa.split()[0]) == ("cpu", "numpy")
    assert "array backend on numpy" in str(plan)
    with pytest.raises(BackendUnavailable, match="got device 'cuda:0', expected cpu \\(cupy is not installed\\)"):
        model.compile(backend="cupy", device="cuda:0")
