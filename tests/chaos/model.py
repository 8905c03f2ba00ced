"""The model under attack, and requests whose answers are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

NAME = "steady"
# Rows per request: its work, and so what a server can carry, does not depend on who shares the batch.
ROWS = 64
WIDTH = 1024
CASES = 8


@dataclass(frozen=True)
class Case:
    """One request, and what the ONNX reference evaluator makes of it."""

    body: bytes
    expected: np.ndarray


def save(
    repository: Path,
    layers: int,
    settings: str = "",
    version: int = 1,
    seed: int = 3,
    scale: float = 1.0,
    cases: int = CASES,
    width: int = WIDTH,
    rows: int = ROWS,
) -> list[Case]:
    """Puts a model into a repository.

    Args:
        repository: Where.
        layers: Layers of `width` by `width`; of the usual size 0.13 GFLOP per request each.
        settings: What its ``headrace.toml`` says.
        version: Its version.
        seed: Of its weights.
        scale: Of its answers.
        cases: How many requests.
        width: Of its layers.
        rows: Of each request.

    Returns:
        Requests to it, with their answers.
    """
    rng = np.random.default_rng(seed)
    shapes = [(1, width), *[(width, width)] * layers, (width, 2)]
    nodes, weights = [], []
    for index, shape in enumerate(shapes):
        values = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [f"h{index}", f"w{index}"], [f"p{index}"]))
        nodes.append(helper.make_node("Tanh", [f"p{index}"], [f"h{index + 1}"]))
    last = f"h{len(shapes)}"
    weights.append(numpy_helper.from_array(np.float32(scale), "scale"))
    nodes.append(helper.make_node("Mul", [last, "scale"], ["y"]))
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = repository / NAME / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    (repository / NAME / "headrace.toml").write_text(settings)
    evaluator = ReferenceEvaluator(model)
    found = []
    for _ in range(cases):
        x = rng.standard_normal((rows, 1)).astype(np.float32)
        tensor = {"name": "h0", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        found.append(Case(json.dumps({"inputs": [tensor]}).encode(), evaluator.run(None, {"h0": x})[0]))
    return found
