"""Builds small ONNX models from text, and holds the optimised graph to the original in the reference evaluator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from headrace.graph import load
from headrace.model import Model

Arrays = Mapping[str, Any]

# Fusions reorder float32 sums: |difference| <= this * (1 + |value|).
TOLERANCE = 2e-5


@dataclass
class Optimised:
    """A loaded Model beside the proto it came from."""

    proto: onnx.ModelProto
    model: Model

    @property
    def ops(self) -> Counter[str]:
        return Counter(node.op_type for node in self.model.graph.graph)

    def node(self, op_type: str) -> Any:
        """The one node of that type."""
        (node,) = [node for node in self.model.graph.graph if node.op_type == op_type]
        return node

    def attributes(self, op_type: str) -> dict[str, Any]:
        return {name: attr.value for name, attr in self.node(op_type).attributes.items()}

    def agrees(self, **feeds: Any) -> list[np.ndarray]:
        """Asserts that both compute the same for `feeds`; returns what they compute."""
        want = ReferenceEvaluator(self.proto).run(None, feeds)
        got = ReferenceEvaluator(self.model.to_proto()).run(None, feeds)
        for value, expected in zip(got, want, strict=True):
            assert value.shape == expected.shape
            assert value.dtype == expected.dtype
            if value.dtype.kind == "f":
                np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=TOLERANCE)
            else:
                np.testing.assert_array_equal(value, expected)
        return got


def build(text: str, weights: Arrays | None = None, opset: int = 20, ml_opset: int = 3) -> onnx.ModelProto:
    """Parses a graph in ONNX's text syntax, and gives it `weights` as initializers."""
    head = f'<ir_version: 9, opset_import: ["" : {opset}, "ai.onnx.ml" : {ml_opset}]>'
    proto = onnx.parser.parse_model(f"{head} {text}")
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


@pytest.fixture
def optimise() -> Callable[..., Optimised]:
    def run(text: str, weights: Arrays | None = None, **options: int) -> Optimised:
        proto = build(text, weights, **options)
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return Optimised(proto, load(copy))

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def f32(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Normal float32 numbers of a given shape."""
    return lambda *shape: rng.normal(size=shape).astype(np.float32)
