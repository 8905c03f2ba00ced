"""Statically quantised graphs run on integers, and mean what QuantizeLinear and DequantizeLinear say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import headrace as hr
from headrace import _core
from headrace.graph.lower import lower

DTYPES = {"uint8": (np.uint8, TensorProto.UINT8), "int8": (np.int8, TensorProto.INT8)}

# Sums of floats, which the reference evaluator rounds and integers do not, may fall on the other side of a tie.
QUANTA_OFF_MAX = 1
SHARE_OFF_MAX = 0.01


class Graph:
    """Writes a QDQ graph node by node."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def const(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def zero(self, dtype: str, extreme: bool) -> int:
        limits = np.iinfo(DTYPES[dtype][0])
        return int(self.rng.choice([limits.min, limits.max]) if extreme else self.rng.integers(limits.min, limits.max))

    def pair(self, x: str, scale: float, zero: int, dtype: str) -> str:
        """A QuantizeLinear and the DequantizeLinear behind it."""
        by = [self.const(np.float32(scale)), self.const(DTYPES[dtype][0](zero))]
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *by), *by)

    def weight(self, shape: tuple[int, ...], axis: int | None, dtype: str) -> tuple[str, np.ndarray]:
        """Dequantised weights of that shape and their scales, one per index of `axis` or one for all."""
        limits = np.iinfo(DTYPES[dtype][0])
        integers = self.rng.integers(limits.min, limits.max, shape, endpoint=True).astype(DTYPES[dtype][0])
        count = 1 if axis is None else shape[axis]
        scales = self.rng.uniform(0.002, 0.02, count).astype(np.float32)
        zeros = np.zeros(count) if dtype == "int8" else self.rng.integers(90, 160, count)
        zeros = zeros.astype(DTYPES[dtype][0])
        if axis is None:
            scales, zeros = scales.reshape(()), zeros.reshape(())
        inputs = [self.const(array) for array in (integers, scales, zeros)]
        attributes = {} if axis is None else {"axis": axis}
        return self.op("DequantizeLinear", *inputs, **attributes), scales

    def bias(self, kind: str, width: int, x_scale: float, scales: np.ndarray) -> list[str]:
        if kind == "none":
            return []
        if kind == "float":
            return [self.const(self.rng.standard_normal(width).astype(np.float32))]
        step = np.broadcast_to(np.float32(x_scale) * scales, (width,)).astype(np.float32)
        integers = self.rng.integers(-3000, 3000, width).astype(np.int32)
        zeros = self.const(np.zeros(width, np.int32))
        return [self.op("DequantizeLinear", self.const(integers), self.const(step), zeros, axis=0)]

    def activation(self, x: str, kind: str) -> str:
        if kind == "relu":
            return self.op("Relu", x)
        if kind == "clip":
            return self.op("Clip", x, self.const(np.float32(0.0)), self.const(np.float32(6.0)))
        return x

    def model(
        self, inputs: dict[str, tuple[int, ...]], output: str, dtype: int, input_dtype: int = TensorProto.FLOAT
    ) -> onnx.ModelProto:
        """The model whose output is `output`, of any shape."""
        graph = helper.make_graph(
            self.nodes,
            "qdq",
            [helper.make_tensor_value_info(name, input_dtype, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(output, dtype, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def ops_of(model: hr.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.graph)


def on_every_isa(model: hr.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What every ISA computes, alone and in a Batch: the same bits."""
    results = []
    for isa in _core.available_isas():
        plan = _core.NativePlan(lower(model.graph, model.signature, isa), 2)
        results += [plan.run(feeds), *plan.run_batch([feeds, feeds])]
    (name,) = results[0]
    for other in results[1:]:
        np.testing.assert_array_equal(other[name], results[0][name])
    return results[0][name]


def assert_means_the_same(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> hr.Model:
    """Holds the lowered graph to the original one in the reference evaluator, in quanta of the output."""
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    model = hr.load(proto)
    got = on_every_isa(model, feeds)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    off = np.abs(got.astype(np.int64) - want.astype(np.int64))
    assert off.max(initial=0) <= QUANTA_OFF_MAX
    assert (off > 0).sum() <= max(1, SHARE_OFF_MAX * off.size)
    return model


def quantised_output(graph: Graph, y: str, dtype: str, extreme: bool = False) -> str:
    by = [graph.const(np.float32(0.05)), graph.const(DTYPES[dtype][0](graph.zero(dtype, extreme)))]
    return graph.op("QuantizeLinear", y, *by)


options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "x_dtype": st.sampled_from(["uint8", "int8"]),
        "y_dtype": st.sampled_from(["uint8", "int8"]),
        "w_dtype": st.sampled_from(["int8", "int8", "uint8"]),
        "extreme": st.booleans(),
        "per_channel": st.booleans(),
        "bias": st.sampled_from(["none", "float", "int32"]),
        "activation": st.sampled_from(["none", "relu", "clip"]),
        "sum": st.sampled_from(["none", "plain", "rounded"]),
    }
)


@settings(max_examples=12, deadline=None)
@given(
    o=options,
    size=st.sampled_from([(5, 6), (9, 4), (1, 1)]),
    channels=st.sampled_from([(3, 40, 1), (16, 16, 16), (8, 12, 4), (70, 33, 1), (18, 18, 18)]),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
)
def test_a_quantised_convolution(o, size, channels, kernel, stride, dilation):
    graph = Graph(o["seed"])
    c_in, c_out, groups = channels
    x_scale, x_zero = 0.03, graph.zero(o["x_dtype"], o["extreme"])
    x = graph.pair("x", x_scale, x_zero, o["x_dtype"])
    w, scales = graph.weight((c_out, c_in // groups, *kernel), 0 if o["per_channel"] else None, o["w_dtype"])
    y = graph.op(
        "Conv", x, w, *graph.bias(o["bias"], c_out, x_scale, scales),
        group=groups, strides=[stride] * 2, dilations=[dilation] * 2, pads=[2, 1, 2, 3],
    )  # fmt: skip
    y = with_sum(graph, y, o)
    out = quantised_output(graph, graph.activation(y, o["activation"]), o["y_dtype"], o["extreme"])
    shape = (2, c_in, *size)
    rows = [(size[i] + 4 - dilation * (kernel[i] - 1) - 1) // stride + 1 for i in range(2)]
    inputs = {"x": shape}
    if o["sum"] != "none":
        inputs["r"] = (2, c_out, *rows)
    model = run(graph, inputs, out, o)
    assert ops_of(model)["QuantizedConv"] == 1
    assert "Conv" not in ops_of(model)
    assert "QuantizedAdd" not in ops_of(model)


@settings(max_examples=12, deadline=None)
@given(
    o=options,
    rows=st.sampled_from([(1,), (3,), (2, 17)]),
    k=st.sampled_from([1, 7, 64, 385]),
    n=st.sampled_from([1, 33, 130]),
    form=st.sampled_from(["MatMul", "Transpose", "Gemm"]),
)
def test_a_quantised_product(o, rows, k, n, form):
    graph = Graph(o["seed"])
    if form == "Gemm":
        rows = (int(np.prod(rows)),)
    x_scale, x_zero = 0.03, graph.zero(o["x_dtype"], o["extreme"])
    x = graph.pair("x", x_scale, x_zero, o["x_dtype"])
    turned = form != "MatMul"
    axis = (0 if turned else 1) if o["per_channel"] else None
    w, scales = graph.weight((n, k) if turned else (k, n), axis, o["w_dtype"])
    bias = graph.bias(o["bias"], n, x_scale, scales)
    if form == "Gemm":
        y = graph.op("Gemm", x, w, *bias, transB=1)
    else:
        y = graph.op("MatMul", x, graph.op("Transpose", w, perm=[1, 0]) if turned else w)
        y = graph.op("Add", y, *bias) if bias else y
    y = with_sum(graph, y, o)
    out = quantised_output(graph, graph.activation(y, o["activation"]), o["y_dtype"], o["extreme"])
    inputs = {"x": (*rows, k)}
    if o["sum"] != "none":
        inputs["r"] = (*rows, n)
    assert ops_of(run(graph, inputs, out, o))["QuantizedLinear"] == 1


def with_sum(graph: Graph, y: str, o: dict[str, Any]) -> str:
    """Adds another quantised tensor; the product may be rounded by itself before."""
    if o["sum"] == "none":
        return y
    if o["sum"] == "rounded":
        y = graph.pair(y, 0.07, graph.zero("uint8", o["extreme"]), "uint8")
    return graph.op("Add", y, graph.pair("r", 0.04, graph.zero(o["x_dtype"], False), o["x_dtype"]))


def run(graph: Graph, inputs: dict[str, tuple[int, ...]], out: str, o: dict[str, Any]) -> hr.Model:
    feeds = {name: 3 * graph.rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    return assert_means_the_same(graph.model(inputs, out, DTYPES[o["y_dtype"]][1]), feeds)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_a_sum_of_two_quantised_tensors_is_one_op(dtype):
    graph = Graph(1)
    terms = [graph.pair(name, 0.02 * (i + 1), graph.zero(dtype, False), dtype) for i, name in enumerate("ab")]
    out = quantised_output(graph, graph.op("Relu", graph.op("Add", *terms)), dtype)
    model = run(graph, {"a": (3, 37), "b": (3, 37)}, out, {"y_dtype": dtype})
    assert ops_of(model)["QuantizedAdd"] == 1


def test_a_constant_sum_has_rows_of_its_own():
    # Enough rows that two threads take products in a row block by block.
    graph = Graph(12)
    w1, _ = graph.weight((8, 16), None, "int8")
    w2, _ = graph.weight((16, 24), None, "int8")
    hidden = graph.pair(graph.op("MatMul", graph.pair("x", 0.03, 120, "uint8"), w1), 0.05, 100, "uint8")
    given, _ = graph.weight((331, 24), None, "uint8")
    out = quantised_output(graph, graph.op("Add", graph.op("MatMul", hidden, w2), given), "int8")
    model = run(graph, {"x": (331, 8)}, out, {"y_dtype": "int8"})
    assert ops_of(model) == {"QuantizeLinear": 1, "QuantizedLinear": 2}


def test_a_constant_sum_follows_channels_last():
    graph = Graph(13)
    w, _ = graph.weight((6, 3, 3, 3), 0, "int8")
    conv = graph.op("Relu", graph.op("Conv", graph.pair("x", 0.03, 120, "uint8"), w))
    conv = graph.pair(conv, 0.05, 0, "uint8")  # behind an activation, so that the sum is an op of its own
    given, _ = graph.weight((2, 6, 6, 6), None, "uint8")
    out = quantised_output(graph, graph.op("Add", conv, given), "uint8")
    model = run(graph, {"x": (2, 3, 8, 8)}, out, {"y_dtype": "uint8"})
    assert ops_of(model) == {"QuantizeLinear": 1, "QuantizedConv": 1, "QuantizedAdd": 1, "Transpose": 2}


def test_a_product_whose_bytes_are_read_in_another_scale_is_added_as_read():
    graph = Graph(14)
    w, _ = graph.weight((16, 24), None, "int8")
    product = graph.op("MatMul", graph.pair("x", 0.03, 120, "uint8"), w)
    rounded = graph.op("QuantizeLinear", product, graph.const(np.float32(0.07)), graph.const(np.uint8(100)))
    read = graph.op("DequantizeLinear", rounded, graph.const(np.float32(0.03)), graph.const(np.uint8(90)))
    out = quantised_output(graph, graph.op("Add", read, graph.pair("r", 0.04, 7, "uint8")), "int8")
    model = run(graph, {"x": (5, 16), "r": (5, 24)}, out, {"y_dtype": "int8"})
    assert ops_of(model) == {"QuantizeLinear": 2, "QuantizedLinear": 1, "QuantizedAdd": 1}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("chain", [["HardSwish"], ["Sigmoid"], ["LeakyRelu", "Tanh"], ["silu"]])
def test_a_function_of_one_byte_is_looked_up(dtype, chain):
    graph = Graph(2)
    y = x = graph.pair("x", 0.04, graph.zero(dtype, False), dtype)
    for op_type in chain:
        if op_type == "silu":  # as quantisers write it: rounded after each op
            y = graph.op("Mul", x, graph.pair(graph.op("Sigmoid", x), 1 / 256, 0 if dtype == "uint8" else -128, dtype))
        else:
            y = graph.op(op_type, y)
    model = run(graph, {"x": (5, 129)}, quantised_output(graph, y, dtype), {"y_dtype": dtype})
    assert ops_of(model) == {"QuantizeLinear": 1, "QuantizedMap": 1}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_are_moved_as_bytes(dtype):
    graph = Graph(3)
    by = (0.03, graph.zero(dtype, False), dtype)
    x = graph.pair("x", *by)
    pooled = graph.pair(graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), *by)
    both = graph.pair(graph.op("Concat", pooled, pooled, axis=1), *by)
    flat = graph.op("Reshape", graph.op("Transpose", both, perm=[0, 2, 3, 1]), graph.const(np.array([2, -1])))
    w, _ = graph.weight((2 * 68 * 16, 5), 1, "int8")
    out = quantised_output(graph, graph.op("MatMul", flat, w), dtype)
    model = run(graph, {"x": (2, 68, 7, 7)}, out, {"y_dtype": dtype})
    assert ops_of(model)["QuantizeLinear"] == 1
    assert "DequantizeLinear" not in ops_of(model)


def test_an_output_that_nobody_quantises_is_float():
    graph = Graph(4)
    w, scales = graph.weight((6, 3, 3, 3), 0, "int8")
    y = graph.op("Conv", graph.pair("x", 0.03, 120, "uint8"), w, *graph.bias("int32", 6, 0.03, scales))
    proto = graph.model({"x": (1, 3, 9, 8)}, y, TensorProto.FLOAT)
    feeds = {"x": graph.rng.standard_normal((1, 3, 9, 8)).astype(np.float32)}
    model = hr.load(proto)
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    np.testing.assert_allclose(on_every_isa(model, feeds), want, rtol=1e-5, atol=1e-5)
    assert ops_of(model)["QuantizedConv"] == 1


def test_the_plan_says_what_the_model_made_integer():
    graph = Graph(5)
    w, _ = graph.weight((4, 5), None, "int8")
    proto = graph.model({"x": (2, 4)}, graph.op("MatMul", graph.pair("x", 0.1, 3, "uint8"), w), TensorProto.FLOAT)
    plan = hr.load(proto).compile(backend="native").plan
    assert plan.precision == "fp32"
    assert "1 of 2 ops run in int8 (static, from the model)" in plan.reasons


def test_a_saved_plan_of_a_quantised_model_gives_the_same_bits(tmp_path):
    graph = Graph(6)
    w, scales = graph.weight((9, 4, 3, 3), 0, "uint8")
    y = graph.op("Conv", graph.pair("x", 0.03, 99, "int8"), w, *graph.bias("float", 9, 0.03, scales))
    proto = graph.model({"x": (1, 4, 6, 6)}, quantised_output(graph, y, "int8"), TensorProto.INT8)
    feeds = {"x": graph.rng.standard_normal((1, 4, 6, 6)).astype(np.float32)}
    engine = hr.load(proto).compile(backend="native")
    engine.save(tmp_path)
    (got,), (want,) = hr.load_plan(tmp_path)(feeds).values(), engine(feeds).values()
    np.testing.assert_array_equal(got, want)


def test_the_lowered_graph_says_what_it_means_in_standard_ops():
    graph = Graph(7)
    x = graph.pair("x", 0.03, 99, "int8")
    w, scales = graph.weight((8, 4, 3, 3), 0, "int8")
    y = graph.op("Conv", x, w, *graph.bias("int32", 8, 0.03, scales), pads=[1] * 4)
    y = graph.op("Relu", graph.op("Add", graph.pair(y, 0.07, 100, "uint8"), graph.pair("r", 0.05, 7, "uint8")))
    out = quantised_output(graph, graph.op("Tanh", graph.pair(y, 0.05, 0, "uint8")), "int8")
    proto = graph.model({"x": (1, 4, 6, 6), "r": (1, 8, 6, 6)}, out, TensorProto.INT8)
    feeds = {name: graph.rng.standard_normal((1, c, 6, 6)).astype(np.float32) for name, c in (("x", 4), ("r", 8))}
    model = hr.load(proto)
    assert ops_of(model)["QuantizedMap"] == 1
    (got,) = ReferenceEvaluator(model.to_proto()).run(None, feeds)
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= QUANTA_OFF_MAX


# ---- what onnxruntime's quantiser writes ----


def small_network() -> onnx.ModelProto:
    """Convolutions of several kinds, a residual, pools and a last product, in float32."""
    graph = Graph(8)
    shapes = {"stem": (16, 3, 3, 3), "wide": (32, 16, 1, 1), "dw": (32, 1, 3, 3), "narrow": (16, 32, 1, 1)}
    w = {
        name: graph.const((graph.rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32))
        for name, s in shapes.items()
    }
    b = {name: graph.const(graph.rng.standard_normal(s[0]).astype(np.float32)) for name, s in shapes.items()}
    stem = graph.op("Relu", graph.op("Conv", "x", w["stem"], b["stem"], pads=[1] * 4, strides=[2, 2]))
    pooled = graph.op("MaxPool", stem, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.activation(graph.op("Conv", pooled, w["wide"], b["wide"]), "clip")
    y = graph.op("Relu", graph.op("Conv", y, w["dw"], b["dw"], pads=[1] * 4, group=32))
    y = graph.op("Relu", graph.op("Add", graph.op("Conv", y, w["narrow"], b["narrow"]), pooled))
    y = graph.op("Flatten", graph.op("GlobalAveragePool", y))
    last = graph.const(graph.rng.standard_normal((16, 10)).astype(np.float32))
    y = graph.op("Gemm", y, last, graph.const(graph.rng.standard_normal(10).astype(np.float32)))
    return graph.model({"x": (2, 3, 24, 24)}, y, TensorProto.FLOAT)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("activations", "weights"), [("QUInt8", "QInt8"), ("QInt8", "QInt8"), ("QUInt8", "QUInt8")])
def test_what_onnxruntime_quantises_runs_on_integers(tmp_path: Path, per_channel, activations, weights):
    quantization = pytest.importorskip("onnxruntime.quantization", reason="a peer, installed for development only")
    rng = np.random.default_rng(9)
    images = [rng.standard_normal((2, 3, 24, 24)).astype(np.float32) for _ in range(4)]

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = [{"x": image} for image in images]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    onnx.save(small_network(), tmp_path / "float.onnx")
    quantization.quantize_static(
        str(tmp_path / "float.onnx"), str(tmp_path / "int8.onnx"), Samples(),
        quant_format=quantization.QuantFormat.QDQ, per_channel=per_channel,
        activation_type=getattr(quantization.QuantType, activations),
        weight_type=getattr(quantization.QuantType, weights),
    )  # fmt: skip
    proto = onnx.load(tmp_path / "int8.onnx")
    model = hr.load(proto)
    ops = ops_of(model)
    assert ops["QuantizedConv"] == 4
    assert ops["QuantizedLinear"] == 1
    assert not {"FusedConv", "Conv", "Linear", "Add", "Relu"} & set(ops)
    (want,) = ReferenceEvaluator(proto).run(None, {"x": images[0]})
    got = on_every_isa(model, {"x": images[0]})
    quantum = np.diff(np.unique(want)).min()
    # An intermediate tie that falls the other way moves what comes after by a few quanta.
    assert np.abs(got - want).max() <= 4 * quantum


# ---- dynamic quantisation ----


@pytest.mark.parametrize("a_dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("b_dtype", "b_zero"), [("int8", None), ("int8", 0), ("uint8", 128), ("uint8", "columns")])
@pytest.mark.parametrize("a_zero", ["none", "one", "rows"])
def test_a_product_of_integers_with_constant_weights(a_dtype, b_dtype, b_zero, a_zero):
    graph = Graph(10)
    rows, k, n = 15, 131, 40
    limits = {dtype: np.iinfo(DTYPES[dtype][0]) for dtype in DTYPES}

    def integers(dtype: str, *shape: int) -> np.ndarray:
        return graph.rng.integers(limits[dtype].min, limits[dtype].max, shape, endpoint=True).astype(DTYPES[dtype][0])

    b = integers(b_dtype, k, n)
    zeros = integers(b_dtype, n) if b_zero == "columns" else None if b_zero is None else DTYPES[b_dtype][0](b_zero)
    feeds = {"a": integers(a_dtype, rows, k)}
    if a_zero != "none":
        feeds["z"] = integers(a_dtype, *([rows] if a_zero == "rows" else []))
    inputs = ["a", graph.const(b), "z" if "z" in feeds else "", graph.const(zeros) if zeros is not None else ""]
    out = graph.op("MatMulInteger", *inputs)
    shapes = {name: array.shape for name, array in feeds.items()}
    proto = graph.model(shapes, out, TensorProto.INT32, DTYPES[a_dtype][1])
    shift = feeds.get("z", np.zeros((), np.int32)).astype(np.int32)
    shift = shift.reshape(-1, 1) if shift.ndim else shift
    want = (feeds["a"].astype(np.int32) - shift) @ (
        b.astype(np.int32) - (0 if zeros is None else zeros.astype(np.int32))
    )
    np.testing.assert_array_equal(on_every_isa(hr.load(proto), feeds), want)


@pytest.mark.parametrize("k", [0, 33])
@pytest.mark.parametrize("zeros", [(5,), (3, 5, 1)])
def test_rows_of_several_matrices_have_zero_points(k, zeros):
    graph = Graph(15)
    b = graph.rng.integers(-128, 127, (k, 9), endpoint=True).astype(np.int8)
    out = graph.op("MatMulInteger", "a", graph.const(b), "z")
    shapes = {"a": (3, 5, k), "z": zeros}
    proto = graph.model(shapes, out, TensorProto.INT32, TensorProto.UINT8)
    feeds = {name: graph.rng.integers(0, 256, shape).astype(np.uint8) for name, shape in shapes.items()}
    shift = feeds["z"].astype(np.int32).reshape(-1, 5, 1)
    want = (feeds["a"].astype(np.int32) - shift) @ b.astype(np.int32)
    np.testing.assert_array_equal(on_every_isa(hr.load(proto), feeds), want)


def test_dynamic_quantisation_finds_the_range():
    graph = Graph(11)
    graph.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]))
    proto = graph.model({"x": (7, 33)}, "q", TensorProto.UINT8)
    for offset in (0.0, 5.0, -5.0):
        x = graph.rng.standard_normal((7, 33)).astype(np.float32) + np.float32(offset)
        (want,) = ReferenceEvaluator(proto).run(None, {"x": x})
        np.testing.assert_array_equal(on_every_isa(hr.load(proto), {"x": x}), want)


def test_maps_to_the_same_bytes_of_other_dtypes_stay_apart(optimise: Any) -> None:
    result = optimise(
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
        q = QuantizeLinear(x, s, c) d = DequantizeLinear(q, s, c) r = Sigmoid(d)
        a = QuantizeLinear(r, t, u) y = DequantizeLinear(a, t, u)
        b = QuantizeLinear(r, t, i) z = DequantizeLinear(b, t, i) }""",
        {"s": np.float32(0.1), "t": np.float32(0.01), "c": np.uint8(128), "u": np.uint8(0), "i": np.int8(0)},
    )
    assert result.ops["QuantizedMap"] == 2
    x = np.linspace(-9, 9, 20, dtype=np.float32).reshape(5, 4)
    want = ReferenceEvaluator(result.proto).run(None, {"x": x})
    got = result.model.compile(backend="native", threads=1)({"x": x})
    for name, value in zip("yz", want, strict=True):
        np.testing.assert_array_equal(got[name], value)
