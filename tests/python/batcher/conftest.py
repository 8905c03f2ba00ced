"""Batchers to test with, closed afterwards; the fakes are made importable under every pytest import mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import headrace as hr
from headrace.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))

from batcher_fakes import Gated


@pytest.fixture
def make_gated() -> Iterator[Callable[..., Gated]]:
    made: list[Gated] = []

    def make(**options: Any) -> Gated:
        made.append(Gated(**options))
        return made[-1]

    yield make
    for gated in made:
        gated.release()
        gated.batcher.close(drain=False)


@pytest.fixture
def gated(make_gated: Callable[..., Gated]) -> Gated:
    return make_gated()


@pytest.fixture(scope="module")
def native() -> Engine:
    """y = x + x, then gathered at i: an index out of range fails in the Engine, not at the check."""
    nodes = [helper.make_node("Add", ["x", "x"], ["d"]), helper.make_node("Gather", ["d", "i"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "double_gather",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["k"]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["k"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return hr.load(model).compile(backend="native", threads=1)
