"""Ops that are bound by memory, one at a time: against ONNX Runtime, numpy and the machine's copy bandwidth.

    .venv/bin/python benchmarks/kernels/memory.py [--threads 1] [--rounds 3] [--only NAME] [--json FILE]

Each op runs as a one-node model (the chains as a few nodes) whose inputs and outputs are far larger than the caches.
Everything is called from Python and everyone returns new arrays, so allocating the result is part of the time. `ratio`
is ONNX Runtime's median over Headrace's: above 1 is faster. `of copy` is the share of copy bandwidth: the time numpy
takes, in the same run and on one thread, to copy as many bytes between two arrays it already has, over the time the op
takes; with two threads it may exceed 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import headrace as hr
from headrace import hardware
from headrace.measure import Candidate, interleave

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """One op on one set of shapes.

    Attributes:
        nodes: (op, inputs, output, attributes) in order; the last output is the model's.
        feeds: The Request.
        constants: The other inputs.
        numpy: The same in numpy, or None where numpy has no one call for it.
        dtype: The output's dtype.
    """

    name: str
    nodes: list[tuple[str, list[str], str, dict[str, Any]]]
    feeds: dict[str, Array]
    constants: dict[str, Array]
    numpy: Callable[[], Array] | None
    dtype: Any = np.float32

    def model(self) -> onnx.ModelProto:
        """The model; all dims but the last are symbolic, equal ones by one name, so that nobody plans for them."""
        values = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [*(f"n{dim}" for dim in array.shape[:-1]), array.shape[-1]],
            )
            for name, array in self.feeds.items()
        ]
        nodes = [helper.make_node(op, inputs, [out], **attributes) for op, inputs, out, attributes in self.nodes]
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        output = helper.make_tensor_value_info(self.nodes[-1][2], dtype, None)
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(nodes, "case", values, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def one(
    name: str,
    op: str,
    feeds: dict[str, Array],
    numpy: Callable[[], Array] | None = None,
    constants: dict[str, Array] | None = None,
    dtype: Any = np.float32,
    **attributes: Any,
) -> Case:
    """A one-node case; the constants follow the feeds."""
    inputs = [*feeds, *(constants or {})]
    return Case(name, [(op, inputs, "y", attributes)], feeds, constants or {}, numpy, dtype)


def cases() -> list[Case]:
    x, other = floats(4096, 2048), floats(4096, 2048)
    row, column = floats(2048), floats(4096, 1)
    heads = floats(32, 128, 12, 64)
    image = floats(8, 64, 112, 112)
    table, ids = floats(30000, 384), RNG.integers(0, 30000, (32, 512))
    quantised = RNG.integers(0, 255, x.shape, dtype=np.uint8)
    scale, zero = np.float32(0.02), np.uint8(128)
    return [
        one("Add same shape", "Add", {"x": x, "b": other}, lambda: x + other),
        one("Add row", "Add", {"x": x}, lambda: x + row, {"b": row}),
        one("Mul column", "Mul", {"x": x, "b": column}, lambda: x * column),
        one("Mul scalar", "Mul", {"x": x}, lambda: x * np.float32(3), {"b": np.array(3, np.float32)}),
        one("Add channel", "Add", {"x": image}, None, {"b": floats(1, 64, 1, 1)}),
        one("Relu", "Relu", {"x": x}, lambda: np.maximum(x, 0)),
        one(
            "Clip",
            "Clip",
            {"x": x},
            lambda: np.clip(x, 0, 6),
            {"low": np.array(0, np.float32), "high": np.array(6, np.float32)},
        ),
        one("Sigmoid", "Sigmoid", {"x": x}),
        Case("Gather rows", [("Gather", ["t", "i"], "y", {})], {"i": ids}, {"t": table}, lambda: table[ids]),
        one("Transpose 2-D", "Transpose", {"x": x}, lambda: np.ascontiguousarray(x.T), perm=[1, 0]),
        one(
            "Transpose heads",
            "Transpose",
            {"x": heads},
            lambda: np.ascontiguousarray(heads.transpose(0, 2, 1, 3)),
            perm=[0, 2, 1, 3],
        ),
        one(
            "Transpose NCHW to NHWC",
            "Transpose",
            {"x": image},
            lambda: np.ascontiguousarray(image.transpose(0, 2, 3, 1)),
            perm=[0, 2, 3, 1],
        ),
        one("Concat axis 1", "Concat", {"x": x, "b": other}, lambda: np.concatenate([x, other], 1), axis=1),
        Case(
            "Slice axis 1",
            [("Slice", ["x", "from", "to", "axes"], "y", {})],
            {"x": x},
            {"from": np.array([16]), "to": np.array([1040]), "axes": np.array([1])},
            lambda: np.ascontiguousarray(x[:, 16:1040]),
        ),
        one(
            "Pad",
            "Pad",
            {"x": image},
            lambda: np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1))),
            {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        ),
        one("Softmax 128", "Softmax", {"x": floats(96, 512, 128)}),
        one("Softmax 2048", "Softmax", {"x": x}),
        one(
            "LayerNorm 384", "LayerNormalization", {"x": floats(16384, 384)}, None, {"s": floats(384), "b": floats(384)}
        ),
        one("ReduceMean last axis", "ReduceMean", {"x": x}, lambda: x.mean(1), {"axes": np.array([1])}, keepdims=0),
        one("ReduceMean first axis", "ReduceMean", {"x": x}, lambda: x.mean(0), {"axes": np.array([0])}, keepdims=0),
        one("ReduceMax last axis", "ReduceMax", {"x": x}, lambda: x.max(1), {"axes": np.array([1])}, keepdims=0),
        one(
            "Cast f32 to f16", "Cast", {"x": x}, lambda: x.astype(np.float16), None, np.float16, to=TensorProto.FLOAT16
        ),
        one(
            "Cast f32 to bf16",
            "Cast",
            {"x": x},
            lambda: x.astype(ml_dtypes.bfloat16),
            None,
            ml_dtypes.bfloat16,
            to=TensorProto.BFLOAT16,
        ),
        one("Cast f16 to f32", "Cast", {"x": x.astype(np.float16)}, None, None, to=TensorProto.FLOAT),
        one("Cast i64 to f32", "Cast", {"x": np.arange(1 << 22)}, None, None, to=TensorProto.FLOAT),
        one("QuantizeLinear", "QuantizeLinear", {"x": x}, None, {"s": np.array(scale), "z": np.array(zero)}, np.uint8),
        one(
            "DequantizeLinear", "DequantizeLinear", {"x": quantised}, None, {"s": np.array(scale), "z": np.array(zero)}
        ),
        Case(
            "chain of 4",
            [
                ("Mul", ["x", "s"], "a", {}),
                ("Add", ["a", "r"], "b", {}),
                ("Tanh", ["b"], "c", {}),
                ("Mul", ["c", "o"], "y", {}),
            ],
            {"x": x, "o": other},
            {"s": np.array(0.5, np.float32), "r": row},
            lambda: np.tanh(x * np.float32(0.5) + row) * other,
        ),
        Case(
            "chain of 8",
            [
                ("Mul", ["x", "s"], "a", {}),
                ("Add", ["a", "o"], "b", {}),
                ("Relu", ["b"], "c", {}),
                ("Mul", ["c", "x"], "d", {}),
                ("Sub", ["d", "o"], "e", {}),
                ("Add", ["e", "s"], "f", {}),
                ("Max", ["f", "o"], "g", {}),
                ("Mul", ["g", "s"], "y", {}),
            ],
            {"x": x, "o": other},
            {"s": np.array(0.5, np.float32)},
            None,
        ),
        Case(
            "normalise image",
            [
                ("Sub", ["x", "m"], "a", {}),
                ("Div", ["a", "s"], "b", {}),
                ("Clip", ["b", "low", "high"], "y", {}),
            ],
            {"x": image},
            {
                "m": floats(1, 64, 1, 1),
                "s": np.abs(floats(1, 64, 1, 1)) + 1,
                "low": np.array(-2, np.float32),
                "high": np.array(2, np.float32),
            },
            None,
        ),
    ]


def measure(case: Case, threads: int, rounds: int, block_s: float) -> dict[str, Any]:
    """Checks the two runtimes against each other, then times them, numpy and a copy of as many bytes."""
    proto = case.model()
    engine = hr.load(proto).compile(backend="native", threads=threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    ours = next(iter(engine(case.feeds).values()))
    candidates = [Candidate("headrace", lambda: engine(case.feeds))]
    if ours.dtype != ml_dtypes.bfloat16:  # onnxruntime's Python API has no such arrays
        theirs = session.run(None, case.feeds)[0]
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=1e-4, atol=1e-4)
        candidates.append(Candidate("onnxruntime", lambda: session.run(None, case.feeds)))
    if case.numpy is not None:
        candidates.append(Candidate("numpy", case.numpy))
    read = ours.nbytes if case.name == "Gather rows" else sum(array.nbytes for array in case.feeds.values())
    if case.name.startswith("Slice"):
        read = ours.nbytes
    moved = read + ours.nbytes
    source, target = np.zeros(moved // 2, np.uint8), np.ones(moved // 2, np.uint8)
    candidates.append(Candidate("copy", lambda: np.copyto(target, source)))
    medians = {timing.name: timing.median_s for timing in interleave(candidates, rounds=rounds, block_s=block_s)}
    result: dict[str, Any] = {
        "name": case.name,
        "mib": moved / 2**20,
        "median_us": {k: v * 1e6 for k, v in medians.items()},
    }
    result["of_copy"] = medians["copy"] / medians["headrace"]
    for peer in ("onnxruntime", "numpy"):
        if peer in medians:
            result[f"ratio_{peer}"] = medians[peer] / medians["headrace"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block-s", type=float, default=0.1)
    parser.add_argument("--only", default="", help="run the cases whose names contain this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'op':24}{'MiB':>6}{'us':>9}{'onnxruntime':>13}{'numpy':>8}{'of copy':>9}")
    for case in cases():
        if args.only.lower() not in case.name.lower():
            continue
        row = measure(case, args.threads, args.rounds, args.block_s)
        rows.append(row)
        peers = "".join(
            f"{row[key]:>{width}.2f}" if key in row else " " * width
            for key, width in (("ratio_onnxruntime", 13), ("ratio_numpy", 8))
        )
        us = row["median_us"]["headrace"]
        print(f"{row['name']:24}{row['mib']:>6.0f}{us:>9.0f}{peers}{row['of_copy']:>9.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "cpu": hardware.probe().cpu, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
