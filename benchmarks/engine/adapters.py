"""What an Engine adds to what it runs: to a torch module called as torch's users call it, and to the native kernels.

Module and Engine get numpy arrays and give numpy arrays, on one thread. The modules take about a millisecond. Of a
native Plan, all that is not its ops' own time counts as added: the call, the check, the setting up of the run, the
result's arrays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from onnx import TensorProto, helper

import headrace as hr
from benchmarks.engine import tabular
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.measure import Candidate, interleave

PERCEPTRON = "perceptron, 32 rows"


def modules() -> dict[str, tuple[Any, np.ndarray]]:
    """Name -> a torch module and its input."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    perceptron = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 16))
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return {
        PERCEPTRON: (perceptron.eval(), random.standard_normal((32, 256)).astype(np.float32)),
        "CNN, one image of 64 x 64": (network.eval(), random.standard_normal((1, 3, 64, 64)).astype(np.float32)),
    }


def called(module: Any, x: np.ndarray) -> Callable[[], Any]:
    """A call of the module itself."""
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run


def native_models() -> dict[str, tuple[hr.Model, np.ndarray]]:
    """Name -> a model that takes microseconds and its input."""
    import torch

    kind, shape = TensorProto.FLOAT, [4]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", values[:1], values[1:])
    negation = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    module, rows = modules()[PERCEPTRON]
    example = (torch.from_numpy(rows[:1]),)
    perceptron = hr.load(module, example_inputs=example, input_names=["x"], output_names=["y"])
    return {
        "Neg of four numbers": (hr.load(negation), np.ones(4, np.float32)),
        "perceptron, a row": (perceptron, rows[:1]),
        "LightGBM, 100 trees, a row": (hr.load(tabular.train_lightgbm(100, 31)), tabular.data(1, 0)),
    }


def measure(options: Options) -> dict[str, list[dict[str, Any]]]:
    """The torch modules' entries and the native models': medians in microseconds."""
    return {"torch": over_torch(options), "native": over_kernels(options)}


def over_kernels(options: Options) -> list[dict[str, Any]]:
    """One entry per native model: medians of its ops together, a call of the Plan and one of the Engine, in us."""
    rows = []
    for name, (model, x) in native_models().items():
        engine = model.compile(backend="native", threads=1)
        request = {model.signature.inputs[0].name: x}
        core = cast(Any, engine.executable).core
        ops_us: list[float] = []

        def profile(core: Any = core, request: Any = request, ops_us: list[float] = ops_us) -> None:
            ops_us.append(sum(step.ns for step in core.profile([request])) / 1e3)

        candidates = [
            Candidate("ops", profile),
            Candidate("plan", lambda core=core, request=request: core.run(request)),  # type: ignore[misc]
            Candidate("engine", lambda engine=engine, request=request: engine(request)),  # type: ignore[misc]
        ]
        _, plan, ours = interleave(candidates, rounds=2 if options.quick else 9, block_s=0.1)
        rows.append({
            "model": name, "ops_us": statistics.median(ops_us), "plan_us": plan.median_s * 1e6,
            "engine_us": ours.median_s * 1e6,
        })  # fmt: skip
    return rows


def over_torch(options: Options) -> list[dict[str, Any]]:
    """One entry per module: the medians in microseconds, and the Engine's over the module's."""
    import torch

    rows = []
    for name, (module, x) in modules().items():
        model = hr.load(module, example_inputs=(torch.from_numpy(x),), input_names=["x"], output_names=["y"])
        engine = model.compile(backend="torch", threads=1)
        plain = called(module, x)
        np.testing.assert_allclose(engine({"x": x})["y"], plain(), rtol=1e-3, atol=1e-4)
        candidates = [
            Candidate("module", plain),
            Candidate("engine", lambda engine=engine, x=x: engine({"x": x})),  # type: ignore[misc]
        ]
        own, ours = interleave(candidates, rounds=2 if options.quick else 9, block_s=0.1)
        rows.append({
            "model": name, "module_us": own.median_s * 1e6, "engine_us": ours.median_s * 1e6,
            "ratio": ours.median_s / own.median_s,
        })  # fmt: skip
    return rows


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A table of the torch modules, and one of the native models; one line each."""
    cells = [
        [row["model"], number(row["module_us"]), number(row["engine_us"]), f"{row['ratio']:.3f}"]
        for row in found["torch"]
    ]
    over_torch = markdown(
        ["us per call, one thread", "the torch module", "engine on the torch backend", "ratio"], cells
    )
    cells = [
        [row["model"], *(number(row[f"{what}_us"]) for what in ("ops", "plan", "engine"))]
        + [f"**{row['engine_us'] - row[f'{what}_us']:.2f}**" for what in ("plan", "ops")]
        for row in found["native"]
    ]
    headings = ("us per call, one thread", "its ops", "the native Plan", "engine", "added to the Plan", "to its ops")
    return f"{over_torch}\n\n{markdown(headings, cells)}"


SECTIONS = [Section("adapters", "What an Engine adds to what it runs", measure, table)]
