"""Linear takes in what may be taken in, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest


def test_matmul_bias_activation_and_residual_become_one_linear(optimise, f32) -> None:
    result = optimise(
        """g (float[batch, seq, 4] x, float[batch, seq, 3] r) => (float[batch, seq, 3] y)
        { m = MatMul(x, w)  a = Add(b, m)  z = Relu(a)  y = Add(r, z) }""",
        {"w": f32(4, 3), "b": f32(3)},
    )
    assert result.ops == {"Linear": 1}
    assert [value.name for value in result.node("Linear").inputs] == ["x", "w", "b", "r"]
    assert result.attributes("Linear") == {"activation": "relu"}
    result.agrees(x=f32(2, 5, 4), r=f32(2, 5, 3))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("y = Relu(a)", "relu"),
        ("y = Sigmoid(a)", "sigmoid"),
        ("y = Tanh(a)", "tanh"),
        ("y = Gelu(a)", "gelu_erf"),
        ('y = Gelu<approximate = "tanh">(a)', "gelu_tanh"),
        ("s = Sigmoid(a)  y = Mul(a, s)", "silu"),
        ("s = Sigmoid(a)  y = Mul(s, a)", "silu"),
    ],
)
def test_every_activation_of_the_epilogue(optimise, f32, body: str, name: str) -> None:
    text = f"g (float[batch, 4] x) => (float[batch, 3] y) {{ m = MatMul(x, w)  a = Add(m, b)  {body} }}"
    result = optimise(text, {"w": f32(4, 3), "b": f32(3)})
    assert result.ops == {"Linear": 1}
    assert result.attributes("Linear")["activation"] == name
    result.agrees(x=f32(6, 4) * 3)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["vector", "row", "scalar", "none", "residual"])
def test_gemm(optimise, f32, transposed: int, bias: str) -> None:
    call = {"none": "x, w", "residual": "x, w, r"}.get(bias, "x, w, b")
    shapes = {"vector": (3,), "row": (1, 3), "scalar": (1,)}
    weights = {"w": f32(3, 4) if transposed else f32(4, 3)}
    if bias in shapes:
        weights["b"] = f32(*shapes[bias])
    extra, feeds = (", float[batch, 3] r", {"r": f32(5, 3)}) if bias == "residual" else ("", {})
    result = optimise(
        f"g (float[batch, 4] x{extra}) => (float[batch, 3] y) {{ y = Gemm<transB = {transposed}>({call}) }}", weights
    )
    assert result.ops == {"Linear": 1}
    assert tuple(result.node("Linear").inputs[1].shape) == (4, 3)
    result.agrees(x=f32(5, 4), **feeds)


@pytest.mark.parametrize("attributes", ["alpha = 0.5", "beta = 2.0", "transA = 1"])
def test_gemm_that_is_not_plain_stays(optimise, f32, attributes: str) -> None:
    result = optimise(
        f"g (float[4, 4] x) => (float[4, 3] y) {{ y = Gemm<{attributes}>(x, w, b) }}", {"w": f32(4, 3), "b": f32(3)}
    )
    assert result.ops == {"Gemm": 1}
    result.agrees(x=f32(4, 4))


def test_a_weight_that_is_transposed_first_is_laid_out_once(optimise, f32) -> None:
    result = optimise(
        "g (float[batch, 4] x) => (float[batch, 3] y) { t = Transpose(w)  y = MatMul(x, t) }", {"w": f32(3, 4)}
    )
    assert result.ops == {"Linear": 1}
    result.agrees(x=f32(2, 4))


def test_large_transposed_weights_are_not_held_twice(optimise, f32) -> None:
    weight = f32(700, 700)  # more than what constant folding may compute
    result = optimise(
        "g (float[batch, 700] x) => (float[batch, 700] y) { t = Transpose(w)  y = MatMul(x, t) }", {"w": weight}
    )
    assert result.ops == {"Linear": 1}
    tensor = result.node("Linear").inputs[1].const_value
    assert type(tensor).__name__ == "LazyTensor"
    np.testing.assert_array_equal(tensor.numpy(), weight.T)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        # weights that are not constant
        ("g (float[b, 4] x, float[4, 3] w) => (float[b, 3] y) { y = MatMul(x, w) }", {}),
        # weights of rank 3 belong to each batch entry
        ("g (float[2, b, 4] x) => (float[2, b, 3] y) { y = MatMul(x, w) }", {"w": (2, 4, 3)}),
        # float64
        ("g (double[b, 4] x) => (double[b, 3] y) { y = MatMul(x, w) }", {"w": (4, 3, "d")}),
    ],
)
def test_other_matmuls_stay(optimise, f32, text: str, weights: dict[str, tuple]) -> None:
    arrays = {
        name: f32(*[d for d in shape if d != "d"]).astype(np.float64 if "d" in shape else np.float32)
        for name, shape in weights.items()
    }
    assert optimise(text, arrays).ops == {"MatMul": 1}


def test_an_intermediate_that_is_used_elsewhere_is_not_swallowed(optimise, f32) -> None:
    result = optimise(
        "g (float[b, 4] x) => (float[b, 3] y, float[b, 3] a) { m = MatMul(x, w)  a = Add(m, c)  y = Relu(a) }",
        {"w": f32(4, 3), "c": f32(3)},
    )
    assert result.ops == {"Linear": 1, "Relu": 1}
    result.agrees(x=f32(3, 4))


def test_a_bias_that_varies_over_rows_is_no_bias(optimise, f32) -> None:
    result = optimise(
        "g (float[5, 4] x) => (float[5, 3] y) { m = MatMul(x, w)  y = Add(m, c) }", {"w": f32(4, 3), "c": f32(5, 3)}
    )
    # It is a residual all the same: of the output's own shape.
    assert result.ops == {"Linear": 1}
    assert len(result.node("Linear").inputs) == 4
    result.agrees(x=f32(5, 4))


@pytest.mark.parametrize("shape", ["[1, 3]", "[k, 3]", "[2, b, 3]"])
def test_a_residual_of_another_shape_stays_an_add(optimise, f32, shape: str) -> None:
    result = optimise(
        f"g (float[b, 4] x, float{shape} r) => (float[p, q] y) {{ m = MatMul(x, w)  y = Add(m, r) }}"
        if shape != "[2, b, 3]"
        else "g (float[b, 4] x, float[2, b, 3] r) => (float[p, q, s] y) { m = MatMul(x, w)  y = Add(m, r) }",
        {"w": f32(4, 3)},
    )
    assert result.ops == {"Linear": 1, "Add": 1}


def test_of_two_linears_the_later_takes_the_sum(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 4] x) => (float[b, 4] y)
        { s = MatMul(x, w1)  h = Relu(s)  t = MatMul(h, w2)  u = MatMul(x, w3)  y = Add(u, t) }""",
        {"w1": f32(4, 4), "w2": f32(4, 4), "w3": f32(4, 4)},
    )
    assert result.ops == {"Linear": 3}
    result.agrees(x=f32(3, 4))


def test_an_activation_after_the_residual_is_outside_linear(optimise, f32) -> None:
    result = optimise(
        "g (float[b, 4] x) => (float[b, 4] y) { m = MatMul(x, w)  s = Add(m, x)  y = Relu(s) }", {"w": f32(4, 4)}
    )
    assert result.ops == {"Linear": 1, "Relu": 1}
    result.agrees(x=f32(3, 4))


def test_a_constant_of_the_outputs_shape_is_added_row_by_row(optimise, f32) -> None:
    # Enough rows that two threads take Linears in a row block by block.
    result = optimise(
        "g (float[2, 331, 8] x) => (float[2, 331, 24] y)"
        " { m = MatMul(x, w1)  a = Add(m, b)  h = Relu(a)  n = MatMul(h, w2)  y = Add(n, c) }",
        {"w1": f32(8, 16), "b": f32(16), "w2": f32(16, 24), "c": f32(2, 331, 24)},
    )
    assert result.ops == {"Linear": 2}
    requests = [{"x": f32(2, 331, 8)} for _ in range(2)]
    engine = result.model.compile(backend="native", threads=2)
    for request, got in zip(requests, engine.run_batch(requests), strict=True):
        (want,) = result.agrees(**request)
        np.testing.assert_allclose(got["y"], want, rtol=1e-5, atol=1e-5)
        assert engine(request)["y"].tobytes() == got["y"].tobytes()
