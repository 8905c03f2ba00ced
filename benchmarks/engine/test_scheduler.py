"""The scheduler's own cost, for pytest-benchmark: ``make bench-ops``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper
from pytest_benchmark.fixture import BenchmarkFixture

import headrace as hr
from headrace.engine import Engine

REQUEST = {"x": np.arange(4, dtype=np.float32)}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Hands its input back."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "empty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=1)


@pytest.fixture(scope="module")
def batcher(engine: Engine) -> Iterator[hr.Batcher]:
    with hr.Batcher(engine) as batcher:
        yield batcher


def test_engine_alone(benchmark: BenchmarkFixture, engine: Engine) -> None:
    benchmark(lambda: engine(REQUEST))


def test_submit_to_result(benchmark: BenchmarkFixture, batcher: hr.Batcher) -> None:
    benchmark(lambda: batcher.submit(REQUEST).result())


def test_submit_32_then_results(benchmark: BenchmarkFixture, batcher: hr.Batcher) -> None:
    benchmark(lambda: [future.result() for future in [batcher.submit(REQUEST) for _ in range(32)]])
