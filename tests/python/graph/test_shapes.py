"""Shape computations disappear where the dims are known by name, and stay where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.graph import dims


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (dims.add("a", 1), "a + 1"),
        (dims.add("a + 1", -1), "a"),
        (dims.sub("a", "a"), 0),
        (dims.mul("b", dims.mul(3, "a")), "3*a*b"),
        (dims.canonical("1 + a"), "a + 1"),
        (dims.canonical("b*a*2"), "2*a*b"),
        (dims.mul("floor(h/2)", 2), "2*(floor(h / 2))"),
        (dims.divide_products(["batch", "seq", 384], ["batch", "seq", 12]), 32),
        (dims.divide_products(["12*batch", "seq"], [12, "seq"]), "batch"),
        (dims.divide_products(["a + 1", 4], ["a + 1"]), 4),
        (dims.divide_products(["a"], [2]), None),
        (dims.divide_products(["a"], ["b"]), None),
        (dims.broadcast([("b", 1, 4), ("s", 1)]), ("b", "s", 4)),
        (dims.broadcast([("b", 4), ("s", 4)]), None),
        (dims.broadcast([(3,), (4,)]), None),
    ],
)
def test_arithmetic_on_dims(got: object, want: object) -> None:
    assert got == want


def test_a_reshape_to_its_own_dims_is_made_constant(optimise, f32) -> None:
    result = optimise(
        """g (float[batch, seq, 8] x) => (float[batch, seq, 2, 4] y) {
        b = Shape<start = 0, end = 1>(x) s = Shape<start = 1, end = 2>(x)
        t = Concat<axis = 0>(b, s, h, m) y = Reshape(x, t) }""",
        {"h": np.array([2]), "m": np.array([-1])},
    )
    assert result.ops == {"Reshape": 1}
    assert result.node("Reshape").inputs[1].const_value.numpy().tolist() == [0, 0, 2, 4]
    result.agrees(x=f32(2, 3, 8))


def test_gathered_shapes_are_followed(optimise, f32) -> None:
    result = optimise(
        """g (float[batch, 6, 4] x) => (float[p, q] y) {
        s = Shape(x) b = Gather<axis = 0>(s, i) u = Unsqueeze(b, i0) t = Concat<axis = 0>(u, m) y = Reshape(x, t) }""",
        {"i": np.array(0), "i0": np.array([0]), "m": np.array([-1])},
    )
    assert result.ops == {"Reshape": 1}
    assert [str(dim) for dim in result.model.signature.outputs[0].dims] == ["batch", "24"]
    result.agrees(x=f32(2, 6, 4))


def test_two_unrelated_dims_keep_their_computation(optimise, f32) -> None:
    result = optimise("""g (float[a, b] x, float[c, d] z) => (float[p, q] y) { s = Shape(z) y = Reshape(x, s) }""")
    assert result.ops == {"Shape": 1, "Reshape": 1}
    result.agrees(x=f32(2, 6), z=f32(3, 4))


def test_a_reshape_to_the_shape_it_has_is_gone(optimise, f32) -> None:
    result = optimise(
        "g (float[a, b] x, float[a, b] z) => (float[a, b] y) { s = Shape(z) r = Reshape(x, s) y = Abs(r) }"
    )
    assert result.ops == {"Abs": 1}
    result.agrees(x=f32(2, 6), z=f32(2, 6))


def test_an_expanded_mask_is_peeled(optimise, f32) -> None:
    result = optimise(
        """g (bool[b, 1, 1, s] m, float[b, 2, s, s] x) => (float[b, 2, s, s] y) {
        d = Shape<start = 0, end = 1>(x) n = Shape<start = 3, end = 4>(x) t = Concat<axis = 0>(d, one, n, n)
        e = Expand(m, t) w = Where(e, zero, low) y = Add(x, w) }""",
        {"one": np.array([1]), "zero": np.float32(0), "low": np.float32(-1e9)},
    )
    assert result.ops == {"Where": 1, "Add": 1}
    result.agrees(m=np.array([[True, False, True]]).reshape(1, 1, 1, 3), x=f32(1, 2, 3, 3))


def test_an_expand_that_enlarges_stays(optimise, f32) -> None:
    result = optimise(
        "g (float[1, s] x, float[b, s] z) => (float[b, s] y) { t = Shape(z) e = Expand(x, t) y = Abs(e) }",
    )
    assert result.ops["Abs"] == 1
    result.agrees(x=f32(1, 3), z=f32(4, 3))


def test_picking_every_element_in_order_is_no_gather(optimise) -> None:
    result = optimise(
        """g (bool[b, s] m) => (bool[b, 1, 1, s] y) {
        ns = Shape<start = 0, end = 1>(m) ss = Shape<start = 1, end = 2>(m) n = Squeeze(ns) k = Squeeze(ss)
        i = Range(zero, n, one) j = Range(zero, k, one) i4 = Unsqueeze(i, a123) j4 = Unsqueeze(j, a012)
        x = Max(i4, j4) t = Shape(x) ie = Expand(i4, t) je = Expand(j4, t)
        i5 = Unsqueeze(ie, last) j5 = Unsqueeze(je, last) g = Concat<axis = -1>(i5, j5) y = GatherND(m, g) }""",
        {
            "zero": np.array(0),
            "one": np.array(1),
            "a123": np.array([1, 2, 3]),
            "a012": np.array([0, 1, 2]),
            "last": np.array([-1]),
        },
    )
    assert result.ops == {"Unsqueeze": 1}
    result.agrees(m=np.array([[True, False, True], [False, False, True]]))


def test_transposing_through_merged_heads_is_one_transpose(optimise, f32) -> None:
    result = optimise(
        """g (float[b, 2, s, 4] x) => (float[b, 2, 4, s] y) {
        n = Shape<start = 2, end = 3>(x) c = Shape<start = 0, end = 1>(x)
        t = Concat<axis = 0>(m, n, four) r = Reshape(x, t) p = Transpose<perm = [0, 2, 1]>(r)
        u = Concat<axis = 0>(c, two, four, n) y = Reshape(p, u) }""",
        {"m": np.array([-1]), "two": np.array([2]), "four": np.array([4])},
    )
    assert result.ops == {"Transpose": 1}
    result.agrees(x=f32(3, 2, 5, 4))


def test_constants_are_folded_but_not_blown_up(optimise) -> None:
    result = optimise(
        "g (float[4] x) => (float[4] y, float[p, q] z) { a = Add(c, c) y = Mul(x, a) e = Expand(c, big) z = Abs(e) }",
        {"c": np.float32([2]), "big": np.array([4096, 4096])},
    )
    assert result.ops == {"Mul": 1, "Expand": 1, "Abs": 1}
    assert sum(value.const_value.nbytes for value in result.model.graph.graph.initializers.values()) < 1000


def test_repeats_are_computed_once(optimise, f32) -> None:
    result = optimise("g (float[n] x) => (float[n] y) { a = Exp(x) b = Exp(x) c = Identity(b) y = Add(a, c) }")
    assert result.ops == {"Exp": 1, "Add": 1}
    result.agrees(x=f32(3))


def test_random_ops_are_never_merged(optimise) -> None:
    result = optimise(
        "g (float[3] x) => (float[3] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    )
    assert result.ops["RandomNormalLike"] == 2


def test_an_output_that_is_an_input_keeps_both_names(optimise, f32) -> None:
    result = optimise("g (float[n] x) => (float[n] y, float[n] z) { y = Identity(x) z = Identity(x) }")
    assert [spec.name for spec in result.model.signature.outputs] == ["y", "z"]
    result.agrees(x=f32(3))


def test_subgraphs_are_left_working(optimise, f32) -> None:
    result = optimise(
        """g (bool c, float[n, 4] x) => (float[n, 4] y) {
        a = Add(x, one) b = Add(x, one)
        y = If (c) <then_branch = t () => (float[n, 4] u) { u = Mul(a, two) },
                    else_branch = e () => (float[n, 4] v) { w = Identity(b) v = Neg(w) }> }""",
        {"one": np.float32(1), "two": np.float32(2)},
    )
    assert result.ops == {"Add": 1, "If": 1}
    for condition in (True, False):
        result.agrees(c=np.array(condition), x=f32(2, 4))


@pytest.mark.parametrize(
    ("text", "feeds"),
    [
        (
            "g (float[n, 3] x, int64[1] k) => (float[n, 3] y) { y = Slice(x, zero, k, zero) }",
            {"x": (4, 3), "k": [2]},
        ),
        ("g (float[4, 3] x, int64[1] k) => (float[4, 3] y) { y = Slice(x, zero, k, zero) }", {"x": (4, 3), "k": [2]}),
        ("g (float[n, 3] x, int64[2] k) => (float[n, 3] y) { y = Expand(x, k) }", {"x": (1, 3), "k": [4, 3]}),
        (
            "g (float[a, b, 4] x, int64[3] k) => (float[a, b, 4] y) { y = Reshape(x, k) }",
            {"x": (2, 3, 4), "k": [3, 2, 4]},
        ),
        (
            """g (float[n, 3] x) => (float[n, 3] y)
            { h = Compress<axis = 0>(x, few) s = Shape(h) ends = Gather(s, zero) y = Slice(x, zero, ends, zero) }""",
            {"x": (4, 3)},
        ),
    ],
    ids=["slice", "slice of static dims", "expand", "reshape", "between ops"],
)
def test_dims_that_a_model_states_of_its_results_prove_nothing(optimise, f32, text, feeds) -> None:
    result = optimise(text, {"zero": np.array([0]), "few": np.array([True, False, True, False])})
    result.agrees(**{name: np.array(v) if isinstance(v, list) else f32(*v) for name, v in feeds.items()})


def test_a_stated_dim_that_the_ops_refute_is_not_in_the_signature(optimise, f32) -> None:
    text = "g (float[b, 4] x) => (float[1, 3] y) { h = MatMul(x, w) s = Shape(h) y = Reshape(h, s) }"
    result = optimise(text, {"w": f32(4, 3)})
    assert result.model.signature.outputs[0].dims == ("b", 3)
    assert result.agrees(x=f32(5, 4))[0].shape == (5, 3)


def test_a_stated_dim_that_nothing_refutes_is_in_the_signature(optimise) -> None:
    result = optimise(
        "g (float[n, 3] x, int64[1] k) => (float[m, 3] y) { y = Slice(x, z, k, z) }", {"z": np.array([0])}
    )
    assert result.model.signature.outputs[0].dims == ("m", 3)


def test_a_batch_may_be_empty_where_two_dims_are_merged(optimise, f32) -> None:
    text = """g (float[b, s, 4] x) => (float[b, m] y) {
        h = Shape<start = 0, end = 1>(x) t = Shape<start = 1, end = 2>(x)
        u = Mul(t, four) v = Concat<axis = 0>(h, u) y = Reshape(x, v) }"""
    result = optimise(text, {"four": np.array([4])})
    for batch in (0, 2):
        result.agrees(x=f32(batch, 3, 4))
    engine = result.model.compile(backend="native", threads=1)
    assert engine({"x": f32(0, 3, 4)})["y"].shape == (0, 12)
