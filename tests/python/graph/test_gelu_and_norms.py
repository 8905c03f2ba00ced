"""Gelu, LayerNorm and RMSNorm are recognised in the ways exporters write them out."""

from __future__ import annotations

import numpy as np
import pytest

SCALARS = {
    "half": np.float32(0.5),
    "one": np.float32(1.0),
    "two": np.float32(2.0),
    "three": np.float32(3.0),
    "root2": np.float32(np.sqrt(2)),
    "iroot2": np.float32(np.sqrt(0.5)),
    "k": np.float32(np.sqrt(2 / np.pi)),
    "c": np.float32(0.044715),
    "eps": np.float32(1e-5),
}

ERF = [
    "d = Div(x, root2)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  y = Mul(m, half)",
    "d = Mul(iroot2, x)  e = Erf(d)  a = Add(one, e)  h = Mul(half, x)  y = Mul(h, a)",
    "d = Div(x, root2)  e = Erf(d)  a = Add(e, one)  h = Mul(a, half)  y = Mul(x, h)",
]
TANH = [
    "p = Pow(x, three)  q = Mul(p, c)  s = Add(x, q)  t = Mul(s, k)  u = Tanh(t)  v = Add(u, one)  "
    "w = Mul(half, x)  y = Mul(w, v)",
    "p = Mul(x, x)  q = Mul(p, c)  r = Add(q, one)  s = Mul(x, r)  t = Mul(k, s)  u = Tanh(t)  "
    "v = Add(one, u)  w = Mul(x, v)  y = Mul(w, half)",
]


@pytest.mark.parametrize(("body", "kind"), [(b, "none") for b in ERF] + [(b, "tanh") for b in TANH])
def test_gelu(optimise, f32, body: str, kind: str) -> None:
    result = optimise(f"g (float[n, 8] x) => (float[n, 8] y) {{ {body} }}", SCALARS)
    assert result.ops == {"Gelu": 1}
    assert result.attributes("Gelu")["approximate"] == kind
    result.agrees(x=f32(5, 8) * 4)


@pytest.mark.parametrize(
    "body",
    [
        ERF[0].replace("root2", "two"),  # another argument of erf
        ERF[0].replace("e, one", "e, half"),  # 0.5 + erf
        "d = Div(x, root2)  e = Erf(d)  a = Add(e, one)  m = Mul(z, a)  y = Mul(m, half)",  # of two inputs
        TANH[0].replace("p, c", "p, half"),
    ],
)
def test_what_only_looks_like_gelu_stays(optimise, f32, body: str) -> None:
    result = optimise(f"g (float[n, 8] x, float[n, 8] z) => (float[n, 8] y) {{ {body} }}", SCALARS)
    assert "Gelu" not in result.ops
    result.agrees(x=f32(5, 8), z=f32(5, 8))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (ERF[0], "one"),
        (TANH[0], "half"),
        ("p = Pow(x, two)  m = ReduceMean(p, axis)  a = Add(m, eps)  r = Sqrt(a)  y = Div(x, r)", "eps"),
        ("p = Pow(x, two)  m = ReduceMean(p, axis)  a = Add(m, eps)  r = Sqrt(a)  y = Div(x, r)", "two"),
    ],
)
def test_a_constant_that_adds_a_dim_is_no_scalar(optimise, f32, body: str, name: str) -> None:
    constants = {**SCALARS, "axis": np.array([-1]), name: SCALARS[name].reshape(1, 1, 1)}
    result = optimise(f"g (float[n, 8] x) => (float[1, n, 8] y) {{ {body} }}", constants)
    assert not {"Gelu", "RMSNormalization"} & set(result.ops)
    result.agrees(x=f32(5, 8))


def test_a_gelu_whose_inside_is_an_output_stays(optimise, f32) -> None:
    result = optimise(f"g (float[n, 8] x) => (float[n, 8] y, float[n, 8] a) {{ {ERF[0]} }}", SCALARS)
    assert "Gelu" not in result.ops
    result.agrees(x=f32(5, 8))


MEAN = "mu = ReduceMean<axes = [-1]>(x)  d = Sub(x, mu)  "
NORM = "v = ReduceMean<axes = [-1]>(q)  e = Add(v, eps)  r = Sqrt(e)  "
LAYER = [
    MEAN + "q = Pow(d, two)  " + NORM + "n = Div(d, r)  s = Mul(n, gamma)  y = Add(s, beta)",
    MEAN + "q = Mul(d, d)  " + NORM + "i = Reciprocal(r)  n = Mul(d, i)  s = Mul(gamma, n)  y = Add(beta, s)",
    # two Subs, as some exporters write the mean's difference twice
    MEAN + "d2 = Sub(x, mu)  q = Pow(d2, two)  " + NORM + "n = Div(d, r)  s = Mul(n, gamma)  y = Add(s, beta)",
    MEAN + "q = Pow(d, two)  " + NORM + "n = Div(d, r)  y = Mul(n, gamma)",
    MEAN + "q = Pow(d, two)  " + NORM + "y = Div(d, r)",
]


@pytest.mark.parametrize("body", LAYER)
def test_layer_norm(optimise, f32, body: str) -> None:
    weights = {**SCALARS, "gamma": f32(8), "beta": f32(8)}
    result = optimise(f"g (float[n, m, 8] x) => (float[n, m, 8] y) {{ {body} }}", weights, opset=17)
    assert result.ops == {"LayerNormalization": 1}
    assert result.attributes("LayerNormalization")["epsilon"] == pytest.approx(1e-5)
    result.agrees(x=f32(2, 3, 8))


def test_rms_norm(optimise, f32) -> None:
    body = "q = Pow(x, two)  " + NORM + "n = Div(x, r)  y = Mul(n, gamma)"
    result = optimise(f"g (float[n, 8] x) => (float[n, 8] y) {{ {body} }}", {**SCALARS, "gamma": f32(8)}, opset=17)
    assert result.ops == {"RMSNormalization": 1}
    result.agrees(x=f32(4, 8))


@pytest.mark.parametrize(
    "body",
    [
        LAYER[0].replace("axes = [-1]", "axes = [1]"),  # not the last axis
        LAYER[0].replace("two", "three"),  # not the variance
        LAYER[0].replace("Div(d, r)", "Div(x, r)"),  # the mean is not taken off
    ],
)
def test_what_only_looks_like_layer_norm_stays(optimise, f32, body: str) -> None:
    weights = {**SCALARS, "gamma": f32(8), "beta": f32(8)}
    result = optimise(f"g (float[n, 5, 8] x) => (float[n, 5, 8] y) {{ {body} }}", weights, opset=17)
    assert not {"LayerNormalization", "RMSNormalization"} & set(result.ops)
    result.agrees(x=abs(f32(2, 5, 8)) + 1)
