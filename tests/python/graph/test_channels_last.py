"""The image part of a graph runs channels last, with Transposes at its borders alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import headrace as hr

TOLERANCE = 2e-5


@pytest.fixture
def weights(f32) -> dict[str, np.ndarray]:
    vectors = {name: f32(8) for name in ("scale", "shift", "mean")}
    return {
        "k": f32(8, 8, 3, 3) * np.float32(0.1),
        "k1": f32(8, 8, 1, 1),
        "k16": f32(8, 16, 1, 1),
        "dw": f32(8, 1, 3, 3) * np.float32(0.3),
        "per_channel": f32(8, 1, 1),
        "one": np.float32(1.5),
        "var": np.abs(f32(8)) + 0.5,
        "pads": np.array([0, 0, 1, 2, 0, 0, 3, 4], np.int64),
        **vectors,
    }


def run(result: Any, x: np.ndarray) -> None:
    """Holds the native backend, too, to the reference evaluator on the original model."""
    (want,) = ReferenceEvaluator(result.proto).run(None, {"x": x})
    got = result.model.compile(backend="native", threads=2)({"x": x})["y"]
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "middle",
    [
        "m = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(c)",
        "m = AveragePool<kernel_shape = [3, 2], pads = [1, 0, 1, 1]>(c)",
        "m = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(c)",
        "e = HardSwish(c) m = Mul(e, per_channel)",
        "m = Clip(c, , one)",
        "g = GlobalAveragePool(c) s = Conv(g, k1) t = Sigmoid(s) m = Mul(c, t)",
        "g = GlobalMaxPool(c) m = Sub(c, g)",
        "e = Abs(c) t = Concat<axis = 1>(c, e) m = Conv(t, k16)",
        "e, f = Split<axis = 1, num_outputs = 2>(c) m = Concat<axis = -3>(f, e)",
        "n = BatchNormalization(c, scale, shift, mean, var) r = Relu(n) m = Add(r, c)",
        "m = Pad(c, pads, one)",
        "m = Conv<group = 8, pads = [1, 1, 1, 1]>(c, dw)",
        "m = PRelu(c, per_channel)",
    ],
)
@pytest.mark.parametrize("dims", ["2, 8, 9, 11", "b, 8, h, w"])
def test_what_stands_between_convolutions_follows(optimise, f32, weights, middle: str, dims: str) -> None:
    result = optimise(
        f"g (float[{dims}] x) => (float[a, b1, c1, d1] y) "
        f"{{ c = Conv<pads = [1, 1, 1, 1]>(x, k) {middle} y = Conv(m, k1) }}",
        weights,
    )
    assert result.ops["Transpose"] == 2, result.ops
    x = f32(2, 8, 9, 11)
    result.agrees(x=x)
    run(result, x)


def test_a_residual_block_with_every_dim_unknown_is_three_ops(optimise, f32, weights) -> None:
    result = optimise(
        "g (float[b, 8, h, w] x) => (float[b1, c1, h1, w1] y) {"
        " c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, k) r = Relu(c) d = Conv(r, k1)"
        " p = Conv<strides = [2, 2]>(x, k1) s = Add(d, p) y = Relu(s) }",
        weights,
    )
    assert result.ops == {"FusedConv": 3, "Transpose": 2}
    x = f32(2, 8, 9, 12)
    result.agrees(x=x)
    run(result, x)


def test_axes_of_other_ops_are_left_alone(optimise, f32, weights) -> None:
    result = optimise(
        "g (float[b, 8, h, w] x) => (float[b1, n] y) { c = Conv(x, k) f = Flatten(c) y = Relu(f) }", weights
    )
    x = f32(3, 8, 5, 6)
    result.agrees(x=x)
    run(result, x)


def test_graphs_without_convolutions_get_no_transposes(optimise) -> None:
    result = optimise(
        "g (float[b, 8, h, w] x) => (float[b, 8, h, w] y) { c = MaxPool<kernel_shape = [1, 1]>(x) y = Add(c, x) }"
    )
    assert "Transpose" not in result.ops


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray]:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 5, 17]))
    group_in, group_out = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (3, 4), (16, 40)]))
    kernel = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    pads = draw(st.lists(st.integers(0, 3), min_size=2 * rank, max_size=2 * rank))
    dims = [
        draw(st.integers(max(1, (size - 1) * dilation + 1), 12 if rank > 1 else 40))
        for size, dilation in zip(kernel, dilations, strict=True)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weights = rng.standard_normal((groups * group_out, group_in, *kernel)).astype(np.float32)
    bias = rng.standard_normal(groups * group_out).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], strides=strides, dilations=dilations, pads=pads, group=groups
    )
    shape = [None, groups * group_in, *[None] * rank]
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * (rank + 2))],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = rng.standard_normal((draw(st.integers(1, 3)), groups * group_in, *dims)).astype(np.float32)
    return model, x


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_convolutions_of_any_shape_agree_with_torch(case: tuple[onnx.ModelProto, np.ndarray]) -> None:
    model, x = case
    loaded = hr.load(model)
    want = loaded.compile(backend="torch")({"x": x})["y"]
    got = loaded.compile(backend="native", threads=2)({"x": x})["y"]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "tolerance", "said"),
    [("bf16", 0.02, "4 of 6 ops run in bf16,"), ("int8", 0.05, "3 of 6 ops run in int8, 1 in bf16,")],
)
def test_low_precision_reaches_convolutions_of_which_depthwise_ones_run_in_bf16(
    optimise, f32, weights, precision: str, tolerance: float, said: str
) -> None:
    result = optimise(
        "g (float[b, 8, h, w] x) => (float[a, b1, c1, d1] y) { c = Conv<pads = [1, 1, 1, 1]>(x, k) r = Relu(c)"
        " m = Conv<group = 8, pads = [1, 1, 1, 1]>(r, dw) e = Conv(m, k1) y = Conv<pads = [1, 1, 1, 1]>(e, k) }",
        weights,
    )
    x = f32(2, 8, 9, 11)
    want = result.model.compile(backend="native")({"x": x})["y"]
    engine = result.model.compile(backend="native", precision=precision, threads=2)
    assert any(said in reason for reason in engine.plan.reasons), engine.plan
    got = engine({"x": x})["y"]
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()
    assert not np.array_equal(got, want)
