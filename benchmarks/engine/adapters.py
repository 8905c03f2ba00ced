"""What the torch adapter adds to torch: a module called as torch's users call it, and the same module as an Engine.

Both get numpy arrays and give numpy arrays, on one thread. The modules take about a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import headrace as hr
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.measure import Candidate, interleave


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
        "perceptron, 32 rows": (perceptron.eval(), random.standard_normal((32, 256)).astype(np.float32)),
        "CNN, one image of 64 x 64": (network.eval(), random.standard_normal((1, 3, 64, 64)).astype(np.float32)),
    }


def called(module: Any, x: np.ndarray) -> Callable[[], Any]:
    """A call of the module itself."""
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run


def measure(options: Options) -> list[dict[str, Any]]:
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


def table(rows: list[dict[str, Any]]) -> str:
    """One line per module."""
    cells = [[row["model"], number(row["module_us"]), number(row["engine_us"]), f"{row['ratio']:.3f}"] for row in rows]
    return markdown(["us per call, one thread", "the torch module", "engine on the torch backend", "ratio"], cells)


SECTIONS = [Section("adapters", "What the torch adapter adds to a call of torch", measure, table)]
