"""The native runtime's heavy ops, one at a time, through one-node models.

    .venv/bin/python -m pytest benchmarks --benchmark-only

The C++ programs beside this file compare kernels with the machine's measured peak; this compares commits.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import headrace as hr

RNG = np.random.default_rng(0)


def engine_of(
    op: str, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray], **attributes: object
) -> hr.Engine:
    """A one-node model, compiled."""
    node = helper.make_node(op, [*inputs, *constants], ["y"], **attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(array.ndim)])
        for name, array in inputs.items()
    ]
    rank = next(iter(inputs.values())).ndim
    graph = helper.make_graph(
        [node],
        op,
        values,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"y{axis}" for axis in range(rank)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return hr.load(model).compile(backend="native")


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 16, 128, 1024])
def test_linear(benchmark: object, rows: int) -> None:
    x = {"x": floats(rows, 384)}
    engine = engine_of("MatMul", x, {"w": floats(384, 1536)})
    benchmark(engine, x)


@pytest.mark.parametrize("rows", [16, 4096])
def test_layer_norm(benchmark: object, rows: int) -> None:
    x = {"x": floats(rows, 384)}
    engine = engine_of("LayerNormalization", x, {"scale": floats(384), "shift": floats(384)})
    benchmark(engine, x)


def test_softmax(benchmark: object) -> None:
    x = {"x": floats(96, 128, 128)}
    benchmark(engine_of("Softmax", x, {}), x)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution(benchmark: object, size: int) -> None:
    x = {"x": floats(1, 64, 56, 56)}
    engine = engine_of("Conv", x, {"w": floats(64, 64, size, size)}, pads=[size // 2] * 4)
    benchmark(engine, x)
