"""The models every backend is held to: small, one family of ops each, with Requests of several shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """A model, Requests of different shapes, and the tolerance its dtype and depth call for."""

    name: str
    model: onnx.ModelProto
    requests: list[dict[str, Array]]
    tolerance: float = 1e-5


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Registers a case under its function's name."""
    CASES[build.__name__] = build
    return build


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def floats(*shape: int) -> Array:
    return rng().standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, tuple[int, list[int | str]]],
    constants: dict[str, Array] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A checked ModelProto."""
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


F32 = TensorProto.FLOAT
I64 = TensorProto.INT64


@case
def mlp() -> Case:
    constants = {"w1": floats(12, 33), "b1": floats(33), "w2": floats(33, 5), "b2": floats(5)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    model = model_of(nodes, {"x": (F32, ["n", 12])}, {"y": (F32, ["n", 5])}, constants)
    return Case("mlp", model, [{"x": floats(n, 12)} for n in (1, 7, 32, 3)])


@case
def gelu_block() -> Case:
    constants = {
        "w1": floats(16, 64) / 4, "b1": floats(64), "w2": floats(64, 16) / 8, "b2": floats(16),
        "scale": floats(16), "shift": floats(16), "half": np.float32(0.5), "one": np.float32(1.0),
        "root2": np.float32(np.sqrt(2.0)),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Div", ["a1", "root2"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["p"]),
        helper.make_node("Mul", ["a1", "p"], ["q"]),
        helper.make_node("Mul", ["q", "half"], ["g"]),
        helper.make_node("MatMul", ["g", "w2"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["a2"]),
        helper.make_node("Add", ["a2", "x"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "scale", "shift"], ["y"], axis=-1),
    ]
    spec: tuple[int, list[int | str]] = (F32, ["b", "s", 16])
    return Case(
        "gelu_block", model_of(nodes, {"x": spec}, {"y": spec}, constants),
        [{"x": floats(b, s, 16)} for b, s in ((1, 1), (2, 9), (1, 40))], 2e-5,
    )  # fmt: skip


@case
def attention() -> Case:
    heads, width = 4, 32
    constants = {name: floats(width, width) / 6 for name in ("wq", "wk", "wv")} | {
        "split": np.array([0, 0, heads, width // heads], np.int64),
        "merge": np.array([0, 0, width], np.int64),
        "scale": np.float32((width // heads) ** -0.5),
    }
    nodes = []
    for name in "qkv":
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [name], perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["context"]),
        helper.make_node("Transpose", ["context"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "merge"], ["y"]),
    ]
    model = model_of(
        nodes,
        {"x": (F32, ["b", "s", width]), "mask": (F32, ["b", 1, 1, "s"])},
        {"y": (F32, ["b", "s", width])},
        constants,
    )
    requests = []
    for b, s in ((1, 5), (3, 17), (1, 64)):
        mask = np.zeros((b, 1, 1, s), np.float32)
        mask[-1, ..., s // 2 + 1 :] = -1e9
        requests.append({"x": floats(b, s, width), "mask": mask})
    return Case("attention", model, requests)


@case
def convolution() -> Case:
    constants = {
        "w1": floats(8, 3, 3, 3) / 5, "scale": floats(8), "shift": floats(8), "mean": floats(8),
        "var": np.abs(floats(8)) + 0.5, "w2": floats(8, 1, 3, 3) / 3, "w3": floats(8, 8, 1, 1) / 3,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["c2", "w3"], ["c3"]),
        helper.make_node("Add", ["c3", "r1"], ["s"]),
        helper.make_node("Relu", ["s"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    model = model_of(nodes, {"x": (F32, ["n", 3, "h", "w"])}, {"y": (F32, ["n", 8])}, constants)
    return Case("convolution", model, [{"x": floats(n, 3, h, w)} for n, h, w in ((1, 16, 16), (2, 9, 12), (5, 8, 8))])


@case
def pooled_embedding() -> Case:
    constants = {"table": floats(50, 24), "axis": np.array([1], np.int64), "tiny": np.float32(1e-9)}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Cast", ["mask"], ["m"], to=F32),
        helper.make_node("Unsqueeze", ["m", "minus1"], ["m3"]),
        helper.make_node("Mul", ["e", "m3"], ["w"]),
        helper.make_node("ReduceSum", ["w", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["m3", "axis"], ["count"], keepdims=0),
        helper.make_node("Max", ["count", "tiny"], ["safe"]),
        helper.make_node("Div", ["sum", "safe"], ["mean"]),
        helper.make_node("ReduceL2", ["mean", "minus1"], ["norm"], keepdims=1),
        helper.make_node("Div", ["mean", "norm"], ["y"]),
    ]
    model = model_of(
        nodes,
        {"ids": (I64, ["b", "s"]), "mask": (I64, ["b", "s"])},
        {"y": (F32, ["b", 24])},
        constants | {"minus1": np.array([-1], np.int64)},
    )
    requests = []
    for b, s in ((1, 3), (4, 11), (2, 1)):
        mask = np.ones((b, s), np.int64)
        mask[0, s // 2 + 1 :] = 0
        requests.append({"ids": rng().integers(0, 50, (b, s)), "mask": mask})
    return Case("pooled_embedding", model, requests)


@case
def shape_arithmetic() -> Case:
    constants = {
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "two": np.array([2], np.int64),
        "minus1": np.array([-1], np.int64), "two_": np.int64(2),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["dims"]),
        helper.make_node("Slice", ["dims", "zero", "one"], ["rows"]),
        helper.make_node("Gather", ["dims", "one"], ["columns"]),
        helper.make_node("Div", ["columns", "two"], ["half"]),
        helper.make_node("Concat", ["rows", "half", "two"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["pairs"]),
        helper.make_node("Transpose", ["pairs"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Expand", ["zero_f", "target"], ["wide"]),
        helper.make_node("Transpose", ["wide"], ["wide_turned"], perm=[0, 2, 1]),
        helper.make_node("Greater", ["turned", "wide_turned"], ["positive"]),
        helper.make_node("Where", ["positive", "turned", "wide_turned"], ["y"]),
    ]
    model = model_of(
        nodes,
        {"x": (F32, ["n", "k"])},
        {"y": (F32, ["n", 2, "half"])},
        constants | {"zero_f": np.zeros((1, 1, 1), np.float32)},
    )
    return Case("shape_arithmetic", model, [{"x": floats(n, k)} for n, k in ((1, 2), (5, 8), (3, 14))])


@case
def softmaxes_and_reductions() -> Case:
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], axis=1),
        helper.make_node("LogSoftmax", ["x"], ["l"], axis=-1),
        helper.make_node("Mul", ["s", "l"], ["m"]),
        helper.make_node("ReduceMean", ["m", "axes"], ["mean"], keepdims=1),
        helper.make_node("ReduceMax", ["x", "axes"], ["max"], keepdims=1),
        helper.make_node("Sub", ["max", "mean"], ["d"]),
        helper.make_node("Tanh", ["d"], ["t"]),
        helper.make_node("Sigmoid", ["m"], ["g"]),
        helper.make_node("Add", ["t", "g"], ["y"]),
    ]
    spec: tuple[int, list[int | str]] = (F32, ["a", "b", "c"])
    model = model_of(nodes, {"x": spec}, {"y": spec}, {"axes": np.array([0, 2], np.int64)})
    return Case(
        "softmaxes_and_reductions", model, [{"x": floats(*dims)} for dims in ((1, 1, 1), (2, 3, 5), (4, 9, 33))]
    )
