"""Attention is found as torch exports it, in the layout without Transposes, and only where it is exactly that."""

from __future__ import annotations

import math

import numpy as np
import pytest

HEADS, DEPTH = 2, 4
WIDTH = HEADS * DEPTH

SPLIT = "Reshape({x}, split)"
HEAD = (
    "g (float[batch, seq, 8] x{mask}) => (float[batch, seq, 8] y) {{ "
    "qf = MatMul(x, wq) q3 = Add(qf, bq) kf = MatMul(x, wk) k3 = Add(kf, bk) vf = MatMul(x, wv) v3 = Add(vf, bv) "
    "q4 = Reshape(q3, split) k4 = Reshape(k3, split) v4 = Reshape(v3, split) "
    "q = Transpose<perm = [0, 2, 1, 3]>(q4) v = Transpose<perm = [0, 2, 1, 3]>(v4) "
    "{key} {scores} {softmax} o = MatMul(p, v) "
    "t = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(t, merge) }}"
)
KEY = "kt = Transpose<perm = [0, 2, 3, 1]>(k4)"
KEY_TWICE = "k = Transpose<perm = [0, 2, 1, 3]>(k4) kt = Transpose<perm = [0, 1, 3, 2]>(k)"
SCALED = "m = MatMul(q, kt) s = Mul(m, scale)"
SCALED_EACH = "qs = Mul(q, root) ks = Mul(kt, root) s = MatMul(qs, ks)"
DIVIDED = "m = MatMul(q, kt) s = Div(m, iscale)"
PLAIN = "p = Softmax<axis = -1>(s)"
GUARDED = "p0 = Softmax<axis = -1>(s) n = IsNaN(p0) p = Where(n, zero, p0)"

CONSTANTS = {
    "split": np.array([0, 0, HEADS, DEPTH]),
    "merge": np.array([0, 0, WIDTH]),
    "scale": np.float32(DEPTH**-0.5),
    "iscale": np.float32(DEPTH**0.5),
    "root": np.float32(DEPTH**-0.25),
    "zero": np.float32(0),
    "ninf": np.float32(-np.inf),
    "low": np.float32(-1e9),
}


@pytest.fixture
def weights(f32) -> dict[str, np.ndarray]:
    matrices = {f"w{part}": f32(WIDTH, WIDTH) for part in "qkv"}
    return {**CONSTANTS, **matrices, **{f"b{part}": f32(WIDTH) for part in "qkv"}}


def text(key: str = KEY, scores: str = SCALED, softmax: str = PLAIN, mask: str = "") -> str:
    return HEAD.format(key=key, scores=scores, softmax=softmax, mask=mask)


@pytest.mark.parametrize("key", [KEY, KEY_TWICE])
@pytest.mark.parametrize("scores", [SCALED, SCALED_EACH, DIVIDED])
def test_projections_and_heads_are_absorbed(optimise, f32, weights, key: str, scores: str) -> None:
    result = optimise(text(key, scores), weights)
    assert result.ops == {"Linear": 1, "Attention": 1}
    attributes = result.attributes("Attention")
    assert attributes.pop("scale") == pytest.approx(DEPTH**-0.5)
    assert attributes == {"num_heads": HEADS, "kv_heads": HEADS, "guard_nan": 0, "layout": "qkv"}
    assert tuple(result.node("Linear").inputs[1].shape) == (WIDTH, 3 * WIDTH)
    result.agrees(x=f32(3, 5, WIDTH))


def test_a_float_mask_is_added(optimise, f32, weights) -> None:
    result = optimise(
        text(scores=SCALED.replace("s =", "u =") + " s = Add(u, mask)", mask=", float[batch, 1, 1, seq] mask"), weights
    )
    assert result.ops == {"Linear": 1, "Attention": 1}
    assert result.node("Attention").inputs[3].name == "mask"
    mask = np.where(np.arange(5) < 3, 0, -1e9).astype(np.float32).reshape(1, 1, 1, 5).repeat(3, 0)
    result.agrees(x=f32(3, 5, WIDTH), mask=mask)


@pytest.mark.parametrize(("where", "extra"), [("mask, u, ninf", {}), ("mask, ninf, u", {"Not": 1})])
def test_a_bool_mask_excludes(optimise, f32, weights, where: str, extra: dict[str, int]) -> None:
    body = text(
        scores=SCALED.replace("s =", "u =") + f" s = Where({where})",
        softmax=GUARDED,
        mask=", bool[batch, 1, 1, seq] mask",
    )
    result = optimise(body, weights)
    assert result.ops == {"Linear": 1, "Attention": 1, **extra}
    assert result.attributes("Attention")["guard_nan"] == 1
    mask = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool).reshape(2, 1, 1, 3)
    if extra:
        mask = ~mask
    (y,) = result.agrees(x=f32(2, 3, WIDTH), mask=mask)
    np.testing.assert_array_equal(y[1], 0)  # the guard turns a row without keys into zeros


def test_without_a_guard_a_row_without_keys_is_nan(optimise, f32, weights) -> None:
    body = text(scores=SCALED.replace("s =", "u =") + " s = Where(mask, u, ninf)", mask=", bool[batch, 1, 1, seq] mask")
    result = optimise(body, weights)
    assert result.attributes("Attention")["guard_nan"] == 0
    with np.errstate(invalid="ignore"):
        (y,) = result.agrees(x=f32(1, 3, WIDTH), mask=np.zeros((1, 1, 1, 3), dtype=bool))
    assert np.isnan(y).all()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (text(softmax="p = Softmax<axis = 2>(s)"), "another axis"),
        (text(scores="m = MatMul(q, kt) a = Mul(m, m) s = Mul(a, scale)"), "not a scaled product"),
        (
            text(scores="u = MatMul(q, kt) s = Where(mask, u, low)", mask=", bool[batch, 1, 1, seq] mask"),
            "a finite fill counts where all keys are excluded",
        ),
        (
            text(scores="u = MatMul(q, kt) w = Add(u, mask) s = Mul(w, scale)", mask=", float[batch, 1, 1, seq] mask"),
            "scaled after the mask",
        ),
    ],
)
def test_what_is_not_attention_stays(optimise, f32, weights, body: str, why: str) -> None:
    result = optimise(body, weights)
    assert "Attention" not in result.ops, why
    assert "Softmax" in result.ops
    feeds = {"x": f32(2, 3, WIDTH)}
    if "mask" in body:
        mask = np.array([[1, 1, 0], [1, 0, 0]]).reshape(2, 1, 1, 3)
        feeds["mask"] = mask.astype(bool) if "bool" in body else mask.astype(np.float32)
    result.agrees(**feeds)


def test_scores_that_are_an_output_too_stay(optimise, f32, weights) -> None:
    body = text().replace("seq, 8] y)", "seq, 8] y, float[batch, 2, seq, seq] p)")
    result = optimise(body, weights)
    assert "Attention" not in result.ops
    result.agrees(x=f32(2, 3, WIDTH))


def test_heads_that_come_in_split_keep_their_layout(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 2, n, 4] q, float[b, 2, m, 4] k, float[b, 2, m, 4] v) => (float[b, 2, n, 4] y)
        { kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""
    )
    assert result.ops == {"Attention": 1}
    assert result.attributes("Attention")["layout"] == "bhsd"
    assert result.attributes("Attention")["scale"] == 1.0
    result.agrees(q=f32(2, 2, 3, 4), k=f32(2, 2, 5, 4), v=f32(2, 2, 5, 4))


def test_a_product_that_broadcasts_over_the_batch_stays(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 2, n, 4] q, float[1, 2, m, 4] k, float[1, 2, m, 4] v) => (float[b, 2, n, 4] y)
        { kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) p = Softmax<axis = -1>(s) y = MatMul(p, v) }"""
    )
    assert "Attention" not in result.ops
    result.agrees(q=f32(3, 2, 3, 4), k=f32(1, 2, 5, 4), v=f32(1, 2, 5, 4))


def test_projections_of_different_inputs_are_not_merged(optimise, f32, weights) -> None:
    body = text(mask=", float[batch, seq, 8] z").replace("kf = MatMul(x, wk)", "kf = MatMul(z, wk)")
    result = optimise(body, weights)
    assert result.ops == {"Linear": 3, "Attention": 1}
    assert result.attributes("Attention")["layout"] == "bsd"
    result.agrees(x=f32(2, 3, WIDTH), z=f32(2, 3, WIDTH))


def test_a_projection_that_is_used_elsewhere_is_not_merged(optimise, f32, weights) -> None:
    body = text().replace("seq, 8] y)", "seq, 8] y, float[batch, seq, 8] k3)")
    result = optimise(body, weights)
    assert result.ops == {"Linear": 3, "Attention": 1}
    result.agrees(x=f32(2, 3, WIDTH))


def test_a_split_projection_is_taken_whole(optimise, f32) -> None:
    split = HEAD.replace("{key}", KEY).replace("{scores}", SCALED).replace("{softmax}", PLAIN).format(mask="")
    start, end = split.index("qf ="), split.index("q4 =")
    body = split[:start] + "h = MatMul(x, w) q3, k3, v3 = Split<axis = -1, num_outputs = 3>(h) " + split[end:]
    result = optimise(body, {**CONSTANTS, "w": f32(WIDTH, 3 * WIDTH)})
    assert result.ops == {"Linear": 1, "Attention": 1}
    assert result.attributes("Attention")["layout"] == "qkv"
    result.agrees(x=f32(2, 3, WIDTH))


@pytest.mark.parametrize("rank", [3, 4])
def test_the_onnx_op_is_mapped(optimise, f32, rank: int) -> None:
    if rank == 4:
        shapes, call = ("b, 4, n, 8", "b, 2, m, 8"), "Attention(q, k, v, mask)"
        feeds = {"q": f32(2, 4, 3, 8), "k": f32(2, 2, 5, 8), "v": f32(2, 2, 5, 8)}
    else:
        shapes, call = ("b, n, 32", "b, m, 16"), "Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v, mask)"
        feeds = {"q": f32(2, 3, 32), "k": f32(2, 5, 16), "v": f32(2, 5, 16)}
    result = optimise(
        f"g (float[{shapes[0]}] q, float[{shapes[1]}] k, float[{shapes[1]}] v, float[n, m] mask) "
        f"=> (float[{shapes[0]}] y) "
        f"{{ y = {call} }}",
        opset=23,
    )
    node = result.node("Attention")
    assert node.domain == "headrace"
    assert result.attributes("Attention")["scale"] == pytest.approx(1 / math.sqrt(8))
    assert result.attributes("Attention")["kv_heads"] == 2
    result.agrees(**feeds, mask=f32(3, 5))


def test_the_onnx_op_gives_zeros_for_a_row_without_keys(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 2, n, 4] q, float[b, 2, m, 4] k, float[b, 2, m, 4] v, bool[n, m] mask) => (float[b, 2, n, 4] y)
        { y = Attention(q, k, v, mask) }""",
        opset=23,
    )
    assert result.node("Attention").domain == "headrace"
    mask = np.array([[True, False, True], [False, False, False]])
    with np.errstate(invalid="ignore"):
        (y,) = result.agrees(q=f32(1, 2, 2, 4), k=f32(1, 2, 3, 4), v=f32(1, 2, 3, 4), mask=mask)
    np.testing.assert_array_equal(y[:, :, 1], 0)


def test_a_mask_that_onnx_fills_up_stays_with_its_op(optimise) -> None:
    result = optimise(
        """g (float[b, 2, n, 4] q, float[b, 2, 3, 4] k, float[b, 2, 3, 4] v, float[n, 1] mask) => (float[b, 2, n, 4] y)
        { y = Attention(q, k, v, mask) }""",
        opset=23,
    )
    assert result.node("Attention").domain == ""


@pytest.mark.parametrize("attributes", ["is_causal = 1", "softcap = 2.0"])
def test_the_onnx_op_with_more_to_it_stays(optimise, attributes: str) -> None:
    result = optimise(
        f"g (float[b, 2, n, 4] q, float[b, 2, m, 4] k, float[b, 2, m, 4] v) => (float[b, 2, n, 4] y) "
        f"{{ y = Attention<{attributes}>(q, k, v) }}",
        opset=23,
    )
    assert result.node("Attention").domain == ""
