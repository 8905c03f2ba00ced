"""FusedConv takes in BatchNormalization, bias, residual and activation."""

from __future__ import annotations

import numpy as np
import pytest

HEAD = "g (float[b, 3, h, w] x) => (float[b, 4, h, w] y)"
CONV = "c = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(x, k"


@pytest.fixture
def weights(f32) -> dict[str, np.ndarray]:
    return {
        "k": f32(4, 3, 3, 3),
        "kb": f32(4),
        "scale": f32(4),
        "shift": f32(4),
        "mean": f32(4),
        "var": np.abs(f32(4)) + 0.5,
        "zero": np.float32(0),
        "six": np.float32(6),
        "k4": f32(4, 4, 1, 1),
    }


@pytest.mark.parametrize("bias", [", kb)", ")"])
def test_batch_norm_is_folded(optimise, f32, weights, bias: str) -> None:
    result = optimise(
        f"{HEAD} {{ {CONV}{bias} n = BatchNormalization(c, scale, shift, mean, var) y = Relu(n) }}", weights
    )
    assert result.ops == {"FusedConv": 1, "Transpose": 2}
    assert result.attributes("FusedConv")["activation"] == "relu"
    result.agrees(x=f32(2, 3, 5, 6))


@pytest.mark.parametrize(
    ("body", "activation"),
    [
        ("y = Clip(c, zero, six)", "clip"),
        ("y = Sigmoid(c)", "sigmoid"),
        ("s = Sigmoid(c) y = Mul(c, s)", "silu"),
        ("y = Identity(c)", "none"),
    ],
)
def test_activations(optimise, f32, weights, body: str, activation: str) -> None:
    result = optimise(f"{HEAD} {{ {CONV}, kb) {body} }}", weights)
    assert result.ops == {"FusedConv": 1, "Transpose": 2}
    attributes = result.attributes("FusedConv")
    assert attributes["activation"] == activation
    if activation == "clip":
        assert (attributes["clip_min"], attributes["clip_max"]) == (0.0, 6.0)
    result.agrees(x=f32(2, 3, 5, 6) * 3)


def test_the_residual_is_inside_the_activation(optimise, f32, weights) -> None:
    result = optimise(
        "g (float[b, 4, h, w] x) => (float[b, 4, h, w] y) { c = Conv(x, k4) s = Add(c, x) y = Relu(s) }", weights
    )
    assert result.ops == {"FusedConv": 1, "Transpose": 2}
    conv = result.node("FusedConv")
    assert conv.inputs[0] is conv.inputs[3]
    assert [getattr(value, "name", None) for value in conv.inputs[1:3]] == ["k4", None]
    result.agrees(x=f32(2, 4, 5, 6))


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        # the convolution's own result is needed too
        ("c = Conv(x, k4) n = BatchNormalization(c, scale, shift, mean, var) y = Add(n, c)", {"Mul": 1, "Add": 2}),
        # added after the activation
        ("c = Conv(x, k4) r = Relu(c) y = Add(r, x)", {"Add": 1}),
        # one number per channel is no residual
        ("c = Conv(x, k4) y = Mul(c, zero)", {"Mul": 1}),
    ],
)
def test_what_does_not_fit_stays(optimise, f32, weights, body: str, ops: dict[str, int]) -> None:
    result = optimise(f"g (float[b, 4, h, w] x) => (float[b, 4, h, w] y) {{ {body} }}", weights)
    assert result.ops.items() >= ops.items()
    result.agrees(x=f32(2, 4, 5, 6))


def test_weights_that_are_an_input_stay_a_conv(optimise, f32) -> None:
    result = optimise(
        "g (float[b, 3, h, w] x, float[4, 3, 1, 1] k) => (float[b, 4, h, w] y) { c = Conv(x, k) y = Relu(c) }"
    )
    assert result.ops == {"Conv": 1, "Relu": 1}
    result.agrees(x=f32(2, 3, 4, 4), k=f32(4, 3, 1, 1))
