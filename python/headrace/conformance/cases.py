"""The models every backend is held to: small, one family of ops each, with Requests of several shapes.

Between them, their optimised graphs hold every op of domain "headrace".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
Spec = tuple[int, list[int | str]]


@dataclass(frozen=True)
class Case:
    """A model, Requests of different shapes, and the tolerance its dtype and depth call for.

    Attributes:
        tolerance: Absolute and relative, element by element, in fp32. Of quantised models: one step of the output, as a
            sum that falls between two steps may be rounded to either.
    """

    name: str
    model: onnx.ModelProto
    requests: list[dict[str, Array]]
    tolerance: float = 1e-5


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Registers a case under its function's name."""
    CASES[build.__name__] = build
    return build


def cases() -> Iterator[Case]:
    """All of them."""
    return (build() for build in CASES.values())


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def floats(*shape: int) -> Array:
    return rng().standard_normal(shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Spec],
    outputs: dict[str, Spec],
    constants: Mapping[str, Any] | None = None,
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
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=11 if opset > 21 else 10)
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
    spec: Spec = (F32, ["b", "s", 16])
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
    spec: Spec = (F32, ["a", "b", "c"])
    model = model_of(nodes, {"x": spec}, {"y": spec}, {"axes": np.array([0, 2], np.int64)})
    return Case(
        "softmaxes_and_reductions", model, [{"x": floats(*dims)} for dims in ((1, 1, 1), (2, 3, 5), (4, 9, 33))]
    )


@case
def embedding_norm() -> Case:
    constants = {
        "words": floats(40, 16), "places": floats(64, 16), "kinds": floats(2, 16), "scale": floats(16),
        "shift": floats(16),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["w"]),
        helper.make_node("Gather", ["kinds", "types"], ["k"]),
        helper.make_node("Gather", ["places", "at"], ["p"]),
        helper.make_node("Add", ["w", "k"], ["wk"]),
        helper.make_node("Add", ["wk", "p"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["y"], axis=-1),
    ]
    inputs: dict[str, Spec] = {"ids": (I64, ["b", "s"]), "types": (I64, ["b", "s"]), "at": (I64, [1, "s"])}
    model = model_of(nodes, inputs, {"y": (F32, ["b", "s", 16])}, constants)
    requests = [
        {"ids": rng().integers(0, 40, (b, s)), "types": rng().integers(0, 2, (b, s)), "at": np.arange(s)[None]}
        for b, s in ((1, 4), (3, 17), (2, 1))
    ]
    return Case("embedding_norm", model, requests, 2e-5)


@case
def pooled_convolution() -> Case:
    constants = {"w1": floats(6, 3, 3, 3) / 5, "w2": floats(5, 6, 1, 1) / 3, "b2": floats(5)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["c1"], ["p1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"]),
        helper.make_node("Clip", ["c2", "low", "high"], ["y"]),
    ]
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    dims: list[int | str] = ["n", 5, "oh", "ow"]
    model = model_of(nodes, {"x": (F32, ["n", 3, "h", "w"])}, {"y": (F32, dims)}, constants | bounds)
    return Case("pooled_convolution", model, [{"x": floats(n, 3, h, w)} for n, h, w in ((1, 8, 8), (3, 5, 9))])


@case
def quantized_sum() -> Case:
    constants = {"xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(0.04), "yz": np.uint8(0)}
    nodes = [
        *_steps("a", "xs", "xz", "aq"),
        *_steps("b", "xs", "xz", "bq"),
        helper.make_node("Add", ["aq", "bq"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        *_steps("r", "ys", "yz", "y"),
    ]
    spec: Spec = (F32, ["n", 10])
    model = model_of(nodes, {"a": spec, "b": spec}, {"y": spec}, constants)
    return Case("quantized_sum", model, [{"a": floats(n, 10), "b": floats(n, 10)[::-1].copy()} for n in (2, 9)], 0.041)


@case
def quantized_perceptron() -> Case:
    x_scale, h_scale, y_scale = np.float32(0.02), np.float32(0.05), np.float32(0.1)
    weights = {
        name: rng().integers(-127, 128, shape).astype(np.int8) for name, shape in (("w1", (24, 40)), ("w2", (40, 24)))
    }
    constants = weights | {
        "xs": x_scale, "xz": np.uint8(128), "hs": h_scale, "hz": np.uint8(0), "ys": y_scale, "yz": np.uint8(120),
        "ws1": np.full(40, 0.004, np.float32), "ws2": np.full(24, 0.005, np.float32),
        "wz1": np.zeros(40, np.int8), "wz2": np.zeros(24, np.int8), "b1": floats(40) / 4, "b2": floats(24) / 4,
    }  # fmt: skip
    nodes = [
        *_steps("x", "xs", "xz", "xq"),
        helper.make_node("DequantizeLinear", ["w1", "ws1", "wz1"], ["w1f"], axis=1),
        helper.make_node("MatMul", ["xq", "w1f"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        *_steps("r1", "hs", "hz", "hq"),
        helper.make_node("DequantizeLinear", ["w2", "ws2", "wz2"], ["w2f"], axis=1),
        helper.make_node("MatMul", ["hq", "w2f"], ["m2"]),
        helper.make_node("Add", ["m2", "b2"], ["a2"]),
        *_steps("a2", "ys", "yz", "aq"),
        helper.make_node("Add", ["aq", "xq"], ["s"]),
        *_steps("s", "ys", "yz", "y"),
    ]
    spec: Spec = (F32, ["n", 24])
    model = model_of(nodes, {"x": spec}, {"y": spec}, constants)
    return Case("quantized_perceptron", model, [{"x": floats(n, 24)} for n in (1, 9, 33)], 0.11)


@case
def quantized_convolution() -> Case:
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "hs": np.float32(0.05), "hz": np.uint8(0),
        "ys": np.float32(0.05), "yz": np.uint8(0), "w": rng().integers(-127, 128, (8, 4, 3, 3)).astype(np.int8),
        "ws": np.full(8, 0.004, np.float32), "wz": np.zeros(8, np.int8), "b": floats(8) / 4,
        "table_scale": np.float32(1 / 256),
    }  # fmt: skip
    nodes = [
        *_steps("x", "xs", "xz", "xq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("Conv", ["xq", "wf", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        *_steps("r", "hs", "hz", "hq"),
        helper.make_node("Sigmoid", ["hq"], ["g"]),
        *_steps("g", "table_scale", "hz", "gq"),
        helper.make_node("MaxPool", ["gq"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["m"]),
        helper.make_node("Flatten", ["m"], ["y"]),
    ]
    model = model_of(nodes, {"x": (F32, ["n", 4, "h", "w_"])}, {"y": (F32, ["n", 8])}, constants)
    requests = [{"x": floats(n, 4, h, w)} for n, h, w in ((1, 8, 8), (2, 9, 12))]
    return Case("quantized_convolution", model, requests, 0.02)


def _steps(x: str, scale: str, zero: str, y: str) -> list[onnx.NodeProto]:
    """`x` rounded to the steps of a quantisation, as floats `y`."""
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{y}_bytes"]),
        helper.make_node("DequantizeLinear", [f"{y}_bytes", scale, zero], [y]),
    ]


@case
def tree_classifier() -> Case:
    """Eight trees of depth two over five features, three classes named by strings."""
    trees, features, classes = 8, 5, 3
    random = rng()
    nodes: dict[str, list[Any]] = {
        key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes", "true", "false")
    }
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(trees):
        for node in range(7):
            inner = node < 3
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(node)
            nodes["featureids"].append(int(random.integers(features)) if inner else 0)
            nodes["values"].append(float(random.normal()) if inner else 0.0)
            nodes["modes"].append("BRANCH_LEQ" if inner else "LEAF")
            nodes["true"].append(2 * node + 1 if inner else 0)
            nodes["false"].append(2 * node + 2 if inner else 0)
            for label in range(classes) if not inner else ():
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(node)
                leaves["ids"].append(label)
                leaves["weights"].append(float(random.random()))
    forest = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", post_transform="SOFTMAX",
        classlabels_strings=["no", "perhaps", "yes"], nodes_treeids=nodes["treeids"], nodes_nodeids=nodes["nodeids"],
        nodes_featureids=nodes["featureids"], nodes_values=nodes["values"], nodes_modes=nodes["modes"],
        nodes_truenodeids=nodes["true"], nodes_falsenodeids=nodes["false"], class_treeids=leaves["treeids"],
        class_nodeids=leaves["nodeids"], class_ids=leaves["ids"], class_weights=leaves["weights"],
    )  # fmt: skip
    outputs: dict[str, Spec] = {"label": (TensorProto.STRING, ["n"]), "scores": (F32, ["n", classes])}
    model = model_of([forest], {"x": (F32, ["n", features])}, outputs)
    return Case("tree_classifier", model, [{"x": floats(n, features)} for n in (1, 30, 7)])


@case
def scaled_linear_classifier() -> Case:
    """What scikit-learn's pipelines of a scaler and a logistic regression become."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.5, -1.0, 0.0], scale=[2.0, 0.5, 1.0]),
        helper.make_node(
            "LinearClassifier", ["s"], ["label", "raw"], domain="ai.onnx.ml", intercepts=[0.1, -0.1],
            coefficients=[0.3, -0.2, 0.9, -0.3, 0.2, -0.9], classlabels_ints=[4, 7], multi_class=0,
            post_transform="LOGISTIC",
        ),
        helper.make_node("Normalizer", ["raw"], ["p"], domain="ai.onnx.ml", norm="L1"),
    ]  # fmt: skip
    outputs: dict[str, Spec] = {"label": (I64, ["n"]), "p": (F32, ["n", 2])}
    model = model_of(nodes, {"x": (F32, ["n", 3])}, outputs)
    return Case("scaled_linear_classifier", model, [{"x": floats(n, 3)} for n in (1, 12, 5)])
