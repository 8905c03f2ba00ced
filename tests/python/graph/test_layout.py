"""Transposes and Reshapes around Linear and the heads cancel, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

CONSTANTS = {
    "packed": np.array([0, 0, 3, 8]),
    "i0": np.array(0),
    "i1": np.array(1),
    "i2": np.array(2),
    "a0": np.array([0]),
    "a3": np.array([3]),
    "two": np.array([2]),
    "four": np.array([4]),
    "eight": np.array([8]),
    "m1": np.array([-1]),
    "scale": np.float32(0.5),
}

# As torch.nn.MultiheadAttention(8, 2, batch_first=True) is exported.
MULTIHEAD = """g (float[batch, seq, 8] x) => (float[batch, seq, 8] y) {
    b = Shape<start = 0, end = 1>(x) s = Shape<start = 1, end = 2>(x) n = Mul(b, two)
    xt = Transpose<perm = [1, 0, 2]>(x) h0 = MatMul(xt, w) h = Add(h0, wb)
    r = Reshape(h, packed) u = Unsqueeze(r, a0) t = Transpose<perm = [3, 1, 2, 0, 4]>(u) z = Squeeze(t, a3)
    qs = Gather<axis = 0>(z, i0) ks = Gather<axis = 0>(z, i1) vs = Gather<axis = 0>(z, i2)
    flat = Concat<axis = 0>(s, n, four) split = Concat<axis = 0>(b, two, s, four)
    q1 = Reshape(qs, flat) q2 = Transpose<perm = [1, 0, 2]>(q1) q = Reshape(q2, split)
    k1 = Reshape(ks, flat) k2 = Transpose<perm = [1, 0, 2]>(k1) k = Reshape(k2, split)
    v1 = Reshape(vs, flat) v2 = Transpose<perm = [1, 0, 2]>(v1) v = Reshape(v2, split)
    kt = Transpose<perm = [0, 1, 3, 2]>(k) d = MatMul(q, kt) e = Mul(d, scale) p = Softmax<axis = -1>(e)
    o = MatMul(p, v)
    ot = Transpose<perm = [2, 0, 1, 3]>(o) bs = Mul(b, s) rows = Concat<axis = 0>(bs, eight)
    of = Reshape(ot, rows)
    l = Gemm(of, wo, bo) back = Concat<axis = 0>(s, b, eight) l3 = Reshape(l, back)
    y = Transpose<perm = [1, 0, 2]>(l3) }"""


@pytest.fixture
def weights(f32) -> dict[str, np.ndarray]:
    return {**CONSTANTS, "w": f32(8, 24), "wb": f32(24), "wo": f32(8, 8), "bo": f32(8)}


def test_torchs_multihead_attention_is_two_linears_and_attention(optimise, f32, weights) -> None:
    result = optimise(MULTIHEAD, weights)
    assert result.ops == {"Linear": 2, "Attention": 1}
    assert result.attributes("Attention")["layout"] == "qkv"
    for batch, rows in ((1, 1), (3, 5)):
        result.agrees(x=f32(batch, rows, 8))


def test_an_input_that_is_sequence_first_keeps_its_order(optimise, f32, weights) -> None:
    text = MULTIHEAD.replace("float[batch, seq, 8] x", "float[seq, batch, 8] x0").replace(
        "b = Shape", "x = Transpose<perm = [1, 0, 2]>(x0) b = Shape", 1
    )
    result = optimise(text, weights)
    assert result.ops["Attention"] == 1
    assert result.node("Attention").attributes["layout"].value == "bhsd"
    result.agrees(x0=f32(3, 2, 8))


@pytest.mark.parametrize("perm", ["[0, 2, 1]", "[2, 1, 0]"])
def test_a_linear_of_other_rows_is_not_moved(optimise, f32, perm: str) -> None:
    result = optimise(
        f"""g (float[b, 8, 8] x) => (float[b, 8, 8] y)
        {{ t = Transpose<perm = {perm}>(x) m = MatMul(t, w) y = Softmax<axis = -1>(m) }}""",
        {"w": f32(8, 8)},
    )
    (linear,) = [node for node in result.model.graph.graph if node.op_type == "Linear"]
    assert linear.inputs[0].producer().op_type == "Transpose"
    result.agrees(x=f32(8, 8, 8))


def test_a_split_of_an_axis_moves_before_the_transpose(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 6, s] x) => (float[b, s, 2, 3] y)
        { t = Transpose<perm = [0, 2, 1]>(x) y = Reshape(t, shape) }""",
        {"shape": np.array([0, 0, 2, 3])},
    )
    assert [node.op_type for node in result.model.graph.graph] == ["Reshape", "Transpose"]
    result.agrees(x=f32(2, 6, 5))


def test_a_reshape_that_mixes_transposed_axes_stays_behind(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 6, 4] x) => (float[b, 8, 3] y)
        { t = Transpose<perm = [0, 2, 1]>(x) y = Reshape(t, shape) }""",
        {"shape": np.array([0, 8, 3])},
    )
    assert {node.op_type for node in result.model.graph.graph} == {"Transpose", "Reshape"}
    result.agrees(x=f32(2, 6, 4))
