"""Ops on tensors that are larger than the caches, which take other paths through memory, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper, shape_inference

import headrace as hr

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1100, 2053), dtype=np.float32)  # 9 MB, and no row begins where a vector would
ALIGNED = RNG.standard_normal((2080, 1056), dtype=np.float32)
HEADS = RNG.standard_normal((40, 70, 12, 64), dtype=np.float32)
TABLE = RNG.standard_normal((500, 384), dtype=np.float32)
IDS = RNG.integers(-500, 500, (90, 80))
ROW, COLUMN = X[0].copy(), X[:, :1].copy()
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], Callable[[], Any]]] = {
    "Add same": ("Add", {"x": X, "b": X[::-1].copy()}, {}, {}, lambda: X + X[::-1]),
    "Add row": ("Add", {"x": X}, {"b": ROW}, {}, lambda: X + ROW),
    "Div column": ("Div", {"x": X, "b": COLUMN}, {}, {}, lambda: X / COLUMN),
    "Mul scalar": ("Mul", {"x": X}, {"b": np.float32(3)}, {}, lambda: X * np.float32(3)),
    "Relu": ("Relu", {"x": X}, {}, {}, lambda: np.maximum(X, 0)),
    "Clip": ("Clip", {"x": X}, {"low": np.float32(-1), "high": np.float32(0.5)}, {}, lambda: X.clip(-1, 0.5)),
    "Transpose": ("Transpose", {"x": X}, {}, {"perm": [1, 0]}, lambda: X.T),
    "Transpose of whole lines": ("Transpose", {"x": ALIGNED}, {}, {"perm": [1, 0]}, lambda: ALIGNED.T),
    "Transpose of heads": ("Transpose", {"x": HEADS}, {}, {"perm": [0, 2, 1, 3]}, lambda: HEADS.transpose(0, 2, 1, 3)),
    "Transpose of channels": (
        "Transpose",
        {"x": HEADS},
        {},
        {"perm": [0, 2, 3, 1]},
        lambda: HEADS.transpose(0, 2, 3, 1),
    ),
    "Concat rows": ("Concat", {"x": X, "b": X}, {}, {"axis": 0}, lambda: np.concatenate([X, X])),
    "Concat columns": ("Concat", {"x": X, "b": X}, {}, {"axis": 1}, lambda: np.concatenate([X, X], 1)),
    "Slice": (
        "Slice",
        {"x": HEADS},
        {"from": np.array([3]), "to": np.array([-1]), "axes": np.array([1])},
        {},
        lambda: HEADS[:, 3:-1],
    ),
    "Pad": ("Pad", {"x": X}, {"pads": np.array([1, 2, 0, -3])}, {}, lambda: np.pad(X[:, :-3], ((1, 0), (2, 0)))),
    "Gather": ("Gather", {"t": TABLE, "i": IDS}, {}, {}, lambda: TABLE[IDS]),
    "ReduceMax": ("ReduceMax", {"x": X}, {"axes": np.array([0])}, {"keepdims": 0}, lambda: X.max(0)),
}


@pytest.mark.parametrize("name", CASES)
def test_large_tensors_come_out_as_in_numpy(name: str) -> None:
    op, feeds, constants, attributes, expected = CASES[name]
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), [f"{name}{axis}" for axis in range(array.ndim)]
        )
        for name, array in feeds.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, [*feeds, *constants], ["y"], **attributes)],
        "g",
        values,
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = hr.load(shape_inference.infer_shapes(proto))
    want = expected()
    for threads in (1, 2):
        got = model.compile(backend="native", threads=threads)(feeds)["y"]
        np.testing.assert_array_equal(got, want)
