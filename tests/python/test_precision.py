"""Lower precisions: what they compute, and the gate in front of them."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import headrace as hr
from headrace import parity
from headrace.errors import ConfigError, ParityError, RequestError
from headrace.graph.index_ranges import index_ranges
from headrace.graph.precision import PRECISIONS, assign
from headrace.samples import sample_requests, two_requests


def perceptron(inputs: int = 96, hidden: int = 256, outputs: int = 8, seed: int = 0) -> onnx.ModelProto:
    """Two layers with a residual around the second of three, as transformers have them."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(shape[0])
        return onnx.numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        onnx.helper.make_node("Relu", ["h1"], ["a1"]),
        onnx.helper.make_node("MatMul", ["a1", "w2"], ["h2"]),
        onnx.helper.make_node("Add", ["h2", "x"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "w3"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "perceptron",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", outputs])],
        [weight("w1", inputs, hidden), weight("w2", hidden, inputs), weight("w3", inputs, outputs)],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def model() -> hr.Model:
    return hr.load(perceptron())


def rows(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 96)).astype(np.float32)}


def test_lowered_nodes_hold_what_is_between_them_as_bfloat16(model):
    for precision in ("bf16", "int8"):
        found = assign(model.graph.graph, precision)
        assert [node.op_type for node in found.nodes] == ["Linear"] * 3
        # The second output is the sum with a residual and the third the graph's own.
        first, second, third = (node.outputs[0] for node in found.nodes)
        assert found.narrow == {first, second}
        assert third not in found.narrow
    assert not assign(model.graph.graph, "fp32").nodes


def attention_layer(width: int = 64, heads: int = 4, seed: int = 0) -> onnx.ModelProto:
    """Projections, ONNX's Attention between them, with a mask to add."""
    rng = np.random.default_rng(seed)

    def weight(name: str) -> onnx.TensorProto:
        values = rng.standard_normal((width, width)) / np.sqrt(width)
        return onnx.numpy_helper.from_array(values.astype(np.float32), name)

    make = onnx.helper.make_node
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            *(make("MatMul", ["x", f"w{part}"], [part]) for part in "qkv"),
            make("Attention", ["q", "k", "v", "mask"], ["a"], q_num_heads=heads, kv_num_heads=heads),
            make("MatMul", ["a", "wo"], ["y"]),
        ],
        "attention",
        [
            info("x", onnx.TensorProto.FLOAT, ["b", "s", width]),
            info("mask", onnx.TensorProto.FLOAT, ["b", 1, 1, "s"]),
        ],
        [info("y", onnx.TensorProto.FLOAT, ["b", "s", width])],
        [weight(f"w{part}") for part in "qkvo"],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=11)


def tokens(batch: int, length: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((batch, 1, 1, length)) < 0.2, -np.inf, 0).astype(np.float32)
    mask[..., 0] = 0
    return {"x": rng.standard_normal((batch, length, 64)).astype(np.float32), "mask": mask}


@pytest.mark.parametrize(("precision", "linears"), [("bf16", "bf16"), ("int8", "int8")])
def test_attention_is_bf16_from_its_operands_to_its_result(precision, linears):
    found = assign(hr.load(attention_layer()).graph.graph, precision)
    assert [(node.op_type, found.nodes[node]) for node in found.nodes] == [
        ("Linear", linears),
        ("Attention", "bf16"),
        ("Linear", linears),
    ]
    qkv, attended, _ = (node.outputs[0] for node in found.nodes)
    assert found.narrow == {qkv, attended}


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.015), ("int8", 0.03)])
def test_every_isa_attends_in_a_lower_precision_whatever_the_batch(precision, tolerance, monkeypatch):
    from headrace import _core

    model = hr.load(attention_layer())
    requests = [tokens(1, 150), tokens(2, 17, 2), tokens(1, 1, 3)]
    reference = ReferenceEvaluator(attention_layer())
    expected = [reference.run(None, request)[0] for request in requests]
    for isa in _core.available_isas():
        monkeypatch.setenv("HEADRACE_ISA", isa)
        engine = model.compile(precision=precision, threads=2)
        for request, result, want in zip(requests, engine.run_batch(requests), expected, strict=True):
            error = np.linalg.norm(result["y"] - want) / np.linalg.norm(want)
            assert 0 < error < tolerance, isa
            assert engine(request)["y"].tobytes() == result["y"].tobytes()


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.01), ("int8", 0.03)])
def test_every_isa_computes_a_lower_precision(model, precision, tolerance, monkeypatch):
    from headrace import _core

    request = rows(33)
    expected = model.compile(threads=1)(request)["y"]
    for isa in _core.available_isas():
        monkeypatch.setenv("HEADRACE_ISA", isa)
        got = model.compile(precision=precision, threads=1)(request)["y"]
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 0 < error < tolerance, isa


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), precision=st.sampled_from(PRECISIONS))
def test_a_result_does_not_depend_on_the_batch(model, counts, precision):
    engine = engines(model, precision)
    requests = [rows(count, seed) for seed, count in enumerate(counts)]
    together = engine.run_batch(requests)
    for request, result in zip(requests, together, strict=True):
        assert engine(request)["y"].tobytes() == result["y"].tobytes()
        assert engine({"x": request["x"][:1]})["y"].tobytes() == result["y"][:1].tobytes()


_ENGINES: dict[str, hr.Engine] = {}


def engines(model: hr.Model, precision: str) -> hr.Engine:
    if precision not in _ENGINES:
        _ENGINES[precision] = model.compile(precision=precision, threads=2)
    return _ENGINES[precision]


def test_a_plan_says_its_precision_and_how_much_of_the_model_has_it(model):
    plan = model.compile(precision="bf16").plan
    assert plan.precision == "bf16"
    assert "3 of 3 ops run in bf16, the others in fp32" in plan.reasons
    assert plan.details["lowered_ops"] == 3


def test_an_unknown_precision_is_refused(model):
    for backend in ("native", "auto"):
        with pytest.raises(ConfigError, match=r"got precision 'fp8', expected one of fp32, bf16, int8, auto$"):
            model.compile(backend=backend, precision="fp8")


def test_a_sample_that_does_not_fit_is_named(model):
    bad = {name: array[:, :-1] for name, array in rows(8).items()}
    with pytest.raises(RequestError, match=r"compile: samples\[1\]: input .*: got shape"):
        model.compile(backend="native", precision="bf16", samples=[rows(8), bad])


def test_a_named_precision_is_checked_where_a_tolerance_is_given(model):
    plan = model.compile(precision="bf16", samples=[rows(8)], tolerance=0.01).plan
    assert any("1 given samples" in reason for reason in plan.reasons)
    with pytest.raises(ParityError, match=r"in int8 against fp32: got error .* tolerance 1e-06"):
        model.compile(backend="native", precision="int8", tolerance=1e-6)


def test_auto_lowers_nothing_beyond_the_tolerance(model):
    plan = model.compile(precision="auto", tolerance=1e-7).plan
    assert plan.precision == "fp32"
    assert sum(reason.startswith(("not bf16: error", "not int8: error")) for reason in plan.reasons) == 2


def test_auto_takes_what_is_faster_and_says_why(model, monkeypatch):
    from headrace import precision

    speeds = {"fp32": 1.0, "bf16": 0.5, "int8": 0.47}
    monkeypatch.setattr(precision, "_times", lambda both, _: [speeds[one.plan.precision] for one in both])
    plan = model.compile(precision="auto", tolerance=0.1).plan
    assert plan.precision == "bf16"  # int8 gains too little over it
    assert any(reason.startswith("bf16: 2.00 times the speed of fp32, error 0.00") for reason in plan.reasons)
    speeds["bf16"] = 0.95
    assert model.compile(precision="auto", tolerance=0.1).plan.precision == "int8"
    speeds["int8"] = 0.95
    assert model.compile(precision="auto", tolerance=0.1).plan.precision == "fp32"


def test_auto_needs_samples_where_none_can_be_made():
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = onnx.numpy_helper.from_array(np.array([7, 11], np.int64), "shape")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "odd",
        [info("x", onnx.TensorProto.FLOAT, ["n", "m"])],
        [info("y", onnx.TensorProto.FLOAT, [7, 11])],
        [shape],
    )
    model = hr.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))
    with pytest.raises(ParityError, match="expected samples to compare precisions on"):
        model.compile(backend="native", precision="auto")
    request = {"x": np.ones((7, 11), np.float32)}
    assert model.compile(backend="native", precision="auto", samples=[request]).plan.precision == "fp32"


def embedding() -> onnx.ModelProto:
    """Ids that look up a table; in all rows but the first two an outlier that says nothing crushes the rest in int8."""
    rng = np.random.default_rng(5)
    table = rng.standard_normal((50, 64)).astype(np.float32)
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    table[2:, 0], weight[0] = 1e4, 0
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["rows"]),
        onnx.helper.make_node("MatMul", ["rows", "weight"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "embedding",
        [info("ids", onnx.TensorProto.INT64, ["n"])],
        [info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(weight, "weight")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def test_auto_tries_ids_of_the_whole_table(monkeypatch):
    from headrace import precision

    model = hr.load(embedding())
    assert index_ranges(model.graph.graph) == {"ids": 50}
    speeds = {"fp32": 1.0, "bf16": 1.0, "int8": 0.1}
    monkeypatch.setattr(precision, "_times", lambda both, _: [speeds[one.plan.precision] for one in both])
    assert model.compile(backend="native", precision="auto", samples=[{"ids": np.arange(2)}]).plan.precision == "int8"
    plan = model.compile(backend="native", precision="auto").plan
    assert plan.precision == "fp32"
    assert any(reason.startswith("not int8: error") for reason in plan.reasons)


def test_ids_beyond_what_a_model_takes_are_tried_no_more():
    def run_batch(requests):
        if any((request["ids"] > 1).any() for request in requests):
            raise RequestError("ids")

    signature = hr.load(embedding()).signature
    for made in (sample_requests(signature, run_batch, {"ids": 50}), two_requests(signature, run_batch, {"ids": 50})):
        assert made
        assert max(request["ids"].max() for request in made) == 1
    for made in (sample_requests(signature, print, {"ids": 50}), two_requests(signature, print, {"ids": 50})):
        assert 2 < max(request["ids"].max() for request in made) < 50


def test_auto_measures_nothing_where_the_backend_has_one_precision(model, monkeypatch):
    from headrace import precision

    monkeypatch.setattr(precision, "sample_requests", lambda *_: [])
    plan = model.compile(backend="reference", precision="auto").plan
    assert plan.precision == "fp32"
    assert "precision auto chose fp32: backend 'reference' has no other" in plan.reasons


def test_parity_is_the_worst_outputs_error():
    expected = [{"a": np.array([3.0, 4.0], np.float32), "label": np.array([1, 2])}]
    assert parity.compare(expected, expected).error == 0
    got = [{"a": np.array([3.0, 4.5], np.float32), "label": np.array([1, 2])}]
    assert parity.compare(got, expected) == parity.Parity(pytest.approx(0.1), "a")
    got = [{"a": np.array([3.0, 4.5], np.float32), "label": np.array([1, 3])}]
    assert parity.compare(got, expected) == parity.Parity(0.5, "label")
    got = [{"a": np.array([3.0, np.nan], np.float32), "label": np.array([1, 2])}]
    assert parity.compare(got, expected).error == float("inf")
    assert parity.compare(got, got).error == 0
    with pytest.raises(ParityError, match=r"output 'a' of sample 0: got float32 \[1\], expected float32 \[2\]"):
        parity.compare([{"a": np.ones(1, np.float32), "label": np.ones(2)}], expected)
