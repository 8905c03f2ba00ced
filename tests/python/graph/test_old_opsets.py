"""Models of old opsets compute what they did: whatever the ONNX project's converter makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import headrace as hr

RNG = np.random.default_rng(3)
IMAGE = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)


def one_op(op: str, opset: int, inputs: list[np.ndarray], constants: int, **attributes: Any) -> onnx.ModelProto:
    """A model of one node, whose last `constants` inputs are initializers."""
    names = [f"x{index}" for index in range(len(inputs))]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    fixed = len(inputs) - constants
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, ["y"], **attributes)],
        "g",
        values[:fixed],
        [onnx.helper.make_tensor_value_info("y", values[0].type.tensor_type.elem_type, [None] * inputs[0].ndim)],
        [onnx.numpy_helper.from_array(a, name) for a, name in zip(inputs[fixed:], names[fixed:], strict=True)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=4)


def agrees(model: onnx.ModelProto, feeds: dict[str, np.ndarray], backend: str = "native") -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, feeds)
    got = hr.load(model).compile(backend=backend, threads=1)(feeds)["y"]
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def resized(opset: int, mode: str, scales: list[float], constants: int = 1) -> onnx.ModelProto:
    if opset < 9:
        return one_op("Upsample", opset, [IMAGE], 0, mode=mode, scales=scales)
    return one_op("Upsample" if opset < 10 else "Resize", opset, [IMAGE, np.float32(scales)], constants, mode=mode)


@pytest.mark.parametrize("scale", [2, 1.5, 4 / 3, 0.6])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_an_image_is_resized_as_before_opset_11(opset: int, mode: str, scale: float) -> None:
    if opset < 10:
        scale = max(scale, 1)
    agrees(resized(opset, mode, [1.0, 1.0, float(scale), float(scale)]), {"x0": IMAGE})


@pytest.mark.parametrize("constants", [0, 1], ids=["at run time", "constant"])
@pytest.mark.parametrize("scales", [[1, 1, 0.6, 2.5], [1, 1, 2, 3], [1, 1, 0.5, 0.6]])
def test_an_axis_may_grow_where_another_shrinks(scales: list[float], constants: int) -> None:
    feeds = {"x0": IMAGE} if constants else {"x0": IMAGE, "x1": np.float32(scales)}
    agrees(resized(10, "nearest", scales, constants), feeds)


def test_an_image_in_a_branch_is_resized_so_too() -> None:
    model = onnx.parser.parse_model("""<ir_version: 4, opset_import: ["" : 9]>
        g (float[2, 3, 4, 5] x0, bool c) => (float[a, b, h, w] y) {
        s = Constant<value = float[4] {1, 1, 2, 2}>()
        y = If (c) <then_branch = a () => (float[a, b, h, w] u) { u = Upsample<mode = "linear">(x0, s) },
                    else_branch = b () => (float[a, b, h, w] v) { v = Upsample<mode = "nearest">(x0, s) }> }""")
    agrees(model, {"x0": IMAGE, "c": np.array(True)}, backend="reference")


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 2, 3])
def test_softmax_flattens_what_is_before_and_behind_its_axis(op: str, axis: int | None) -> None:
    agrees(one_op(op, 11, [IMAGE], 0, **({} if axis is None else {"axis": axis})), {"x0": IMAGE})


def test_a_norm_may_have_a_mean_for_each_element_of_a_row() -> None:
    statistics = [RNG.uniform(0.5, 2, size=(3, 4, 5)).astype(np.float32) for _ in range(4)]
    agrees(one_op("BatchNormalization", 8, [IMAGE, *statistics], 4, spatial=0), {"x0": IMAGE})


def test_bounds_and_fill_values_are_what_the_data_is() -> None:
    """Against numpy: onnxruntime has no Clip of float64."""
    x = IMAGE.astype(np.float64)
    clip = hr.load(one_op("Clip", 10, [x], 0, max=0.5)).compile(threads=1)({"x0": x})["y"]
    np.testing.assert_array_equal(clip, np.minimum(x, 0.5))
    agrees(one_op("Pad", 10, [x], 0, pads=[0, 0, 1, 2, 0, 0, 2, 1], value=2.0), {"x0": x})


def test_a_clip_without_bounds_has_those_of_float32() -> None:
    x = np.float32([np.inf, -np.inf, 1])
    agrees(one_op("Clip", 10, [x], 0), {"x0": x})


@pytest.mark.parametrize("op", ["Add", "Mul", "PRelu"])
def test_an_operand_is_aligned_to_the_axis_before_opset_7(op: str) -> None:
    """Against numpy: onnxruntime does not take these."""
    slope = np.float32([2, 3, 4])
    model = one_op(op, 6, [IMAGE, slope], 1, **({} if op == "PRelu" else {"broadcast": 1, "axis": 1}))
    column = slope[:, None, None]
    want = {"Add": IMAGE + column, "Mul": IMAGE * column, "PRelu": np.where(IMAGE < 0, IMAGE * column, IMAGE)}[op]
    np.testing.assert_allclose(hr.load(model).compile(threads=1)({"x0": IMAGE})["y"], want, rtol=1e-6)


def test_a_variance_has_its_axes_by_default() -> None:
    for opset in (12, 17):
        agrees(one_op("MeanVarianceNormalization", opset, [IMAGE], 0), {"x0": IMAGE}, backend="reference")


@pytest.mark.parametrize("opset", [3, 4, 7])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_softmax_over_one_axis_needs_no_flattening(op: str, opset: int) -> None:
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        onnx.helper.make_node(op, ["pooled"], ["y"]),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 10, 4, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 10, 1, 1])
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=3)
    rows = np.random.default_rng(0).normal(size=(2, 10, 4, 4)).astype(np.float32)
    powers = np.exp(rows.mean((2, 3), keepdims=True, dtype=np.float64))
    expected = powers / powers.sum(1, keepdims=True)
    with hr.load(model).compile() as engine:
        got = engine({"x": rows})["y"]
    np.testing.assert_allclose(got, np.log(expected) if op == "LogSoftmax" else expected, rtol=1e-5)
